"""Probes of a real small model by real vLLM."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from subprocess import run

import pytest

from tests.llm import LlmServer
from tests.unit.simulation.pools import judged, pool_line, write_pool

QUESTIONS = ("What is 12 + 9?", "Name a river in Peru.", "What is 12 + 9?")
HIDDEN_SIZE = 576


@pytest.mark.vllm
def test_every_question_gets_the_hidden_state_of_a_middle_layer_and_its_log_probabilities(
    llm: LlmServer, tmp_path: Path
) -> None:
    pool = write_pool(
        tmp_path / "pool.jsonl.gz",
        [pool_line(str(i), judged("10"), question=question) for i, question in enumerate(QUESTIONS)],
    )
    command = (sys.executable, "-m", "scheduler.cli", "probe", str(pool), "--llm", str(llm.directory))
    options = ("--llm-url", llm.url, "--out", str(tmp_path / "out.jsonl"), "--json")

    done = run([*command, *options], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["questions_asked"] == 2
    probes = [json.loads(raw)["probe"] for raw in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(len(probe["vector"]), probe["layer"]) for probe in probes] == [(HIDDEN_SIZE, 20)] * 3
    assert probes[0] == probes[2]
    assert probes[0]["vector"] != probes[1]["vector"]
    for probe in probes:
        assert probe["logprob_min"] <= probe["logprob_mean"] < 0 < probe["logprob_std"]
        assert probe["tokens"] > 10
