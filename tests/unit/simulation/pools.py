"""Small pools for tests."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from scheduler.simulation.pools import PoolLine


def pool_line(query_id: str, samples: Iterable[Mapping[str, Any]], **values: Any) -> dict[str, Any]:
    """A line of a pool as JSON has it."""
    line = {"id": query_id, "pool": "test", "arm": "small", "question": f"What is {query_id}?", "prompt_tokens": 10}
    return {**line, "samples": [dict(sample) for sample in samples], **values}


def judged(verdicts: str, tokens: int = 100) -> list[dict[str, Any]]:
    """Samples from a string of 1 (right) and 0 (wrong); every wrong answer is another one."""
    return [
        {"answer": "right" if verdict == "1" else f"wrong {i}", "correct": int(verdict), "tokens": tokens}
        for i, verdict in enumerate(verdicts)
    ]


def lines(**verdicts: str) -> list[PoolLine]:
    """Lines by id and verdicts."""
    return msgspec.convert([pool_line(name, judged(given)) for name, given in verdicts.items()], list[PoolLine])


def write_pool(path: Path, given: Iterable[Mapping[str, Any] | str]) -> Path:
    """A pool on disk; strings are written as they are."""
    text = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in given)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path
