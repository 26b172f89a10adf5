"""Token counts: the served model's own, token for token, wherever its vocabulary is one that tiktoken can express."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from scheduler.tokens import (
    FALLBACK_MARGIN,
    MEASURED_TEMPLATE_TOKENS,
    MESSAGE_TOKENS,
    REPLY_TOKENS,
    TEMPLATE_TOKENS,
    TOOLS_TOKENS,
    UNCOUNTABLE_PART_TOKENS,
    TokenCounter,
    counter_for,
    estimate_prompt,
)
from scheduler.types import Json, Llm

QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE_TOKENIZERS = {
    "gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm2": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "qwen": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
}
CORPUS = [
    "The quick brown fox jumps over the lazy dog; it's 12 o'clock, and they'll have 1,000 more.",
    "def add(a, b):\n    return a + b\n\n\nprint(add(12, 30))\t# 42",
    "Größe, naïve, café,日本語 と 中文, Привет мир, मनुष्य, 😀 and 👍🏽",
] * 20
texts = st.text(max_size=80) | st.lists(
    st.sampled_from(
        ["the", " fox", "  ", "\n", "\t", "12", " 1,000", "é", "日本", "😀", "it's", "<|end|>", "½", "\r\n"]
    )
).map("".join)


def trained(pre_tokenizer: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken("<|end|>", normalized=False), AddedToken("<|end|>+", normalized=False)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


TOKENIZERS = {name: trained(pre_tokenizer) for name, pre_tokenizer in PRE_TOKENIZERS.items()}


def counter_of(tokenizer: Tokenizer, folder: Path) -> TokenCounter:
    tokenizer.save(str(folder / "tokenizer.json"))
    return counter_for(folder)


def counter_of_changed(folder: Path, **changes: Any) -> TokenCounter:
    spec = json.loads(TOKENIZERS["gpt2"].to_str())
    for path, value in changes.items():
        *parents, leaf = path.split("__")
        place = spec
        for parent in parents:
            place = place[parent]
        place[leaf] = value
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    return counter_for(folder)


@pytest.fixture(scope="module")
def counters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TokenCounter]:
    return {name: counter_of(tokenizer, tmp_path_factory.mktemp(name)) for name, tokenizer in TOKENIZERS.items()}


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
@given(text=texts)
def test_a_text_counts_as_many_tokens_as_the_models_own_tokenizer_makes(
    counters: dict[str, TokenCounter], name: str, text: str
) -> None:
    own = len(TOKENIZERS[name].encode(text, add_special_tokens=False).ids)

    counted = counters[name].count_text(text)

    assert counters[name].is_exact
    assert counted == own


def test_a_normalizer_is_applied_before_counting(tmp_path: Path) -> None:
    tokenizer = trained(PRE_TOKENIZERS["qwen"])
    tokenizer.normalizer = normalizers.NFC()
    decomposed = "cafe\u0301 gro\u0308ße"
    counter = counter_of(tokenizer, tmp_path)

    counted = counter.count_text(decomposed)

    assert counter.is_exact
    assert counted == len(tokenizer.encode(decomposed).ids)


@pytest.mark.parametrize(
    "changes",
    [
        {"model__type": "WordPiece"},
        {"model__byte_fallback": True},
        {"model__unk_token": "<|end|>"},
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer__add_prefix_space": True},
        {"model__merges": []},
        {"model": {}},
    ],
)
def test_a_tokenizer_that_tiktoken_cannot_express_falls_back(tmp_path: Path, changes: dict[str, Any]) -> None:
    counter = counter_of_changed(tmp_path, **changes)

    assert counter.name == "o200k_base"
    assert not counter.is_exact


def test_ids_out_of_the_order_of_the_merges_fall_back(tmp_path: Path) -> None:
    merges = json.loads(TOKENIZERS["gpt2"].to_str())["model"]["merges"]

    counter = counter_of_changed(tmp_path, model__merges=[merges[1], merges[0], *merges[2:]])

    assert not counter.is_exact


@pytest.mark.parametrize("content", ["", "[]", "{", '{"model": 5}'])
def test_a_file_that_is_no_tokenizer_falls_back(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)

    counter = counter_for(tmp_path)

    assert counter.name == "o200k_base"


def test_without_a_tokenizer_the_count_is_that_of_o200k_base() -> None:
    counter = counter_for(None)

    count = counter.count_text("tiktoken is great!")

    assert count == 6


def test_the_same_path_is_read_once(tmp_path: Path) -> None:
    first = counter_of(TOKENIZERS["gpt2"], tmp_path)

    again = counter_for(str(tmp_path))

    assert again is first


def test_a_vocabulary_without_some_bytes_still_counts_every_text(tmp_path: Path) -> None:
    vocab = json.loads(TOKENIZERS["gpt2"].to_str())["model"]["vocab"]
    del vocab["Ā"]

    counter = counter_of_changed(tmp_path, model__vocab=vocab)

    assert counter.is_exact
    assert counter.count_text("\x00") == 1


def test_a_message_costs_its_role_its_content_and_what_the_template_puts_around() -> None:
    counter = counter_for(None)

    count = counter.count_messages([{"role": "user", "content": "hello"}])

    assert count == REPLY_TOKENS + MESSAGE_TOKENS + 1 + 1


def test_content_in_parts_counts_its_texts_and_a_constant_for_what_cannot_be_counted() -> None:
    counter = counter_for(None)
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 1000}}
    parts = [{"type": "text", "text": "hello"}, image]

    count = counter.count_messages([{"role": "user", "content": parts}])

    assert count == REPLY_TOKENS + MESSAGE_TOKENS + 1 + 1 + UNCOUNTABLE_PART_TOKENS


def test_tools_and_tool_calls_count() -> None:
    counter = counter_for(None)
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": "{}"}}]}
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}

    without = counter.count_messages([{"role": "assistant", "content": None}])
    with_call = counter.count_messages([call])
    with_tool = counter.count_messages([call], tools=[tool])

    assert without < with_call < with_tool - TOOLS_TOKENS


@given(
    content=st.none()
    | st.integers()
    | st.text()
    | st.lists(st.none() | st.text() | st.dictionaries(st.text(), st.text()))
)
def test_no_message_content_makes_the_count_fail(content: Any) -> None:
    counter = counter_for(None)

    count = counter.count_messages([{"role": "user", "content": content}])

    assert count > 0


def test_the_upper_bound_adds_a_templates_own_words_to_an_exact_count(counters: dict[str, TokenCounter]) -> None:
    bound = counters["qwen"].upper_bound(100)

    assert bound == 100 + TEMPLATE_TOKENS


def test_the_upper_bound_of_a_foreign_vocabulary_is_wider() -> None:
    bound = counter_for(None).upper_bound(100)

    assert bound == 100 * FALLBACK_MARGIN + TEMPLATE_TOKENS


def test_what_a_template_adds_is_estimated_and_no_longer_only_allowed_for() -> None:
    llm = Llm(name="small", context_tokens=2048, template_tokens=22, template_system_tokens=-1)
    question: Json = {"role": "user", "content": "hello"}
    counted = counter_for(None).count_messages([question])

    alone = estimate_prompt(llm, [question])
    with_system = estimate_prompt(llm, [{"role": "system", "content": ""}, question])

    assert alone.tokens == counted + 22
    assert alone.tokens_max == FALLBACK_MARGIN * alone.tokens + MEASURED_TEMPLATE_TOKENS
    assert with_system.tokens == counted + MESSAGE_TOKENS + 1 - 1


def test_an_unmeasured_template_is_allowed_for() -> None:
    question: Json = {"role": "user", "content": "hello"}

    estimate = estimate_prompt(None, [question])

    assert estimate.tokens == counter_for(None).count_messages([question])
    assert estimate.tokens_max == FALLBACK_MARGIN * estimate.tokens + TEMPLATE_TOKENS


@pytest.mark.parametrize("text", ["a" * 1_000_000, " " * 1_000_000, "\n" * 1_000_000, "\ud800" * 1000])
def test_a_monotonous_or_broken_text_is_counted_all_the_same(text: str) -> None:
    counter = counter_for(None)

    count = counter.count_text(text)

    assert 0 < count <= len(text)
