"""What a recorded pool holds: read strictly, bad lines named by their number."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, cast

import msgspec

from scheduler.errors import InvalidRequest
from scheduler.jsonlines import Fault, decode

NAMED_MAX = 5
"""Bad lines that a refusal names; the rest are counted."""

Count = Annotated[int, msgspec.Meta(ge=0, le=10**9)]
Amount = Annotated[float, msgspec.Meta(ge=0)]


class PoolSample(msgspec.Struct, frozen=True, kw_only=True):
    """One recorded completion, judged."""

    correct: Annotated[int, msgspec.Meta(ge=0, le=1)]
    tokens: Count
    answer: str | None = None
    logprob: float | None = None
    finish: str | None = None
    text: str | None = None
    cost_usd: Amount | None = None


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """What a model would have answered, had its thinking been cut after `tokens`."""

    tokens: Count
    correct: Annotated[int, msgspec.Meta(ge=0, le=1)]
    answer: str | None = None
    confidence: float
    entropy: float
    probe_tokens: Count = 0


class PoolPrice(msgspec.Struct, frozen=True, kw_only=True):
    """What the tokens cost, in USD per million."""

    prompt_usd_per_mtok: Amount
    completion_usd_per_mtok: Amount


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """What a small model's prefill says of the prompt."""

    vector: list[float]
    logprob_mean: float
    logprob_std: float
    logprob_min: float
    tokens: Count
    model: str = ""
    layer: int = 0


class PoolLine(msgspec.Struct, frozen=True, kw_only=True):
    """One query under one arm, with all its samples."""

    id: Annotated[str, msgspec.Meta(min_length=1)]
    pool: str
    arm: str
    question: str
    prompt_tokens: Count
    samples: Annotated[list[PoolSample], msgspec.Meta(min_length=1)]
    task: str | None = None
    reference: str | None = None
    price: PoolPrice | None = None
    model_params_b: Amount | None = None
    draws_per_answer: Annotated[int, msgspec.Meta(ge=1)] | None = None
    checkpoints: list[Checkpoint] | None = None
    probe: Probe | None = None


def read_pools(paths: Sequence[Path]) -> list[PoolLine]:
    """The lines of several pools; an id under one arm may stand in them once.

    Raises InvalidRequest that names files and lines.
    """
    lines: list[PoolLine] = []
    first: dict[tuple[str, str], str] = {}
    wrong: list[str] = []
    for path in paths:
        for place, line in _lines(path):
            if isinstance(line, str):
                wrong.append(f"{place} {line}.")
                continue
            earlier = first.setdefault((line.id, line.arm), place)
            if earlier != place:
                wrong.append(f"{place} repeats id {line.id!r} under arm {line.arm!r} of {earlier}.")
            lines.append(line)
    if wrong:
        more = f" (and {len(wrong) - NAMED_MAX} more)" if len(wrong) > NAMED_MAX else ""
        raise InvalidRequest(f"The pools cannot be replayed: {' '.join(wrong[:NAMED_MAX])}{more}")
    if not lines:
        raise InvalidRequest(f"There is no line in {' or '.join(map(str, paths)) or 'no pool'}.")
    return lines


def _lines(path: Path) -> Iterator[tuple[str, PoolLine | str]]:
    """Each line that is not blank, or what is wrong with it, with its place."""
    if not path.is_file():
        raise InvalidRequest(f"There is no pool {path}.")
    with path.open("rb") as probe:
        packed = probe.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            for number, raw in enumerate(cast("Iterator[bytes]", file), start=1):
                if raw.strip():
                    yield f"{path.name} line {number}", _line(raw)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InvalidRequest(f"{path} is damaged ({error}); copy it again.") from None


def _line(raw: bytes) -> PoolLine | str:
    try:
        return _decoder.decode(raw)
    except msgspec.ValidationError as error:
        return f"is no line of a pool: {error}"
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        fault = decode(raw)
        return fault.problem if isinstance(fault, Fault) else "is not JSON"


_decoder = msgspec.json.Decoder(PoolLine)
