"""The demo's workload: graded sums from easy to hopeless for a tiny model, and small word problems. Seeded.

`python ops/demo/workload.py` writes it beside this file, as an OpenAI batch whose lines carry an `allotd` object.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SEED, COMPARED_SEED = 20260314, 20260315
SUMS, WORD_PROBLEMS = 90, 30
WORKLOAD = Path(__file__).with_name("workload.jsonl")
MODEL = "smollm2-135m"
THINGS = ("apples", "books", "coins", "pencils", "shells", "stamps")
WHO = ("A baker", "A farmer", "A teacher", "A sailor", "A painter")


def workload(seed: int = SEED) -> Iterator[dict[str, Any]]:
    """The lines in order."""
    chance = random.Random(seed)  # noqa: S311 (no secret)
    for number in range(SUMS):
        size = 10 ** (1 + number // 45) - 1
        a, b = chance.randint(2, size), chance.randint(2, size)
        question = f"What is {a} + {b}? Answer with just the number."
        yield _line(f"sum-{number}", question, a + b, task="sums", tokens_max=8, is_vote=number % 3 == 0)
    for number in range(WORD_PROBLEMS):
        a, b, thing = chance.randint(3, 20), chance.randint(2, 9), chance.choice(THINGS)
        question = f"{chance.choice(WHO)} has {a} {thing} and gets {b} more. How many {thing} are there now?"
        question += " Answer with just the number."
        yield _line(f"word-{number}", question, a + b, task="word_problems", tokens_max=24, is_vote=number % 3 == 0)


def _line(custom_id: str, question: str, answer: int, *, task: str, tokens_max: int, is_vote: bool) -> dict[str, Any]:
    allotd: dict[str, Any] = {"verifier": "numeric", "reference": str(answer), "task": task, "samples_max": 8}
    if is_vote:
        allotd["strategy"] = "self_consistency"
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": MODEL,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": tokens_max,
            "temperature": 0.7,
            "allotd": allotd,
        },
    }


def comparable(lines: int, samples_max: int) -> str:
    """Further questions of the same kinds, without a strategy of their own: a whole batch is answered by one.

    Shuffled, as a workload comes: with the easy ones first, a rule that spends all on the first of them looks well.
    """
    chosen = list(workload(COMPARED_SEED))[::2][:lines]
    random.Random(COMPARED_SEED).shuffle(chosen)  # noqa: S311 (no secret)
    for line in chosen:
        asked = line["body"]["allotd"]
        asked.pop("strategy", None)
        asked["samples_max"] = samples_max
    return "".join(json.dumps(line) + "\n" for line in chosen)


def as_jsonl() -> str:
    """The workload as a batch's input file."""
    return "".join(json.dumps(line) + "\n" for line in workload())


if __name__ == "__main__":
    WORKLOAD.write_text(as_jsonl())
