"""The demo's workload is what its generator makes, and its lines are ones allotd takes."""

from __future__ import annotations

import json
from collections import Counter

from ops.demo.workload import WORKLOAD, as_jsonl


def test_generating_the_workload_again_gives_the_same_bytes() -> None:
    assert WORKLOAD.read_bytes() == as_jsonl().encode()


def test_every_line_is_graded_and_a_third_of_them_vote() -> None:
    bodies = [json.loads(line)["body"] for line in WORKLOAD.read_text().splitlines()]

    assert all({"verifier", "reference", "task"} <= body["allotd"].keys() for body in bodies)
    strategies = Counter(body["allotd"].get("strategy", "auto") for body in bodies)
    assert strategies == {"auto": 80, "self_consistency": 40}
