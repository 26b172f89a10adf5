"""How a wait behaves when the server goes away, and what it shows."""

from __future__ import annotations

import io
from typing import Any, cast

import pytest
from rich.console import Console
from rich.text import Text

from scheduler.cli import progress, waiting
from scheduler.cli.client import Api, Refused, Unreachable


class Script:
    """An API that answers one thing after another."""

    def __init__(self, *answers: dict[str, Any] | Exception) -> None:
        self.answers = list(answers)

    def get(self, path: str) -> dict[str, Any]:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def pages(self, path: str) -> list[dict[str, Any]]:
        return []


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits take no time."""
    monkeypatch.setattr("time.sleep", lambda _: None)


def test_a_server_that_is_restarted_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    away, broken = Unreachable("No allotd answers."), Refused("Bad Gateway", status=502)

    ending = wait(batch("in_progress", queued=2), away, away, broken, batch("completed", answered=2))

    assert ending.exit_code == 0
    assert capsys.readouterr().err.count("No allotd answers. Trying on for 120 s; the batch itself is safe.") == 1


@pytest.mark.parametrize(
    ("last", "code"),
    [
        (("completed", {"answered": 2}), 0),
        (("completed", {"answered": 2, "failed": 1}), 4),
        (("completed", {"answered": 2, "failed": 1, "budget_stopped": 1}), 3),
        (("cancelled", {"answered": 2, "budget_stopped": 1}), 1),
        (("failed", {"failed": 1}), 1),
        (("expired", {"answered": 2, "expired": 1}), 1),
    ],
)
def test_the_exit_code_tells_how_the_batch_ended(last: tuple[str, dict[str, int]], code: int) -> None:
    status, states = last

    ending = wait(batch(status, **states))

    assert ending.exit_code == code
    assert ("allotd batch submit FILE --max-cost USD" in waiting.final_words(ending)) is ("budget_stopped" in states)


def test_a_refusal_ends_the_wait_at_once() -> None:
    with pytest.raises(Refused, match="no batch"):
        wait(Refused("There is no batch.", status=404))


def test_a_server_that_stays_away_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "PATIENCE_S", -1.0)

    with pytest.raises(Unreachable):
        wait(Unreachable("No allotd answers."))


def test_lines_parked_for_a_moment_do_not_end_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    ending = wait(
        batch("in_progress", parked=2), batch("in_progress", parked=1, running=1), batch("completed", answered=2)
    )

    assert not ending.is_parked


def test_a_batch_being_read_is_not_stuck() -> None:
    assert not waiting.is_stuck(batch("validating", parked=1))
    assert not waiting.is_stuck(batch("in_progress", parked=1, queued=1))
    assert not waiting.is_stuck(batch("in_progress", answered=1))
    assert waiting.is_stuck(batch("in_progress", parked=1, answered=1))


def test_without_a_terminal_an_unchanged_batch_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    wait(*(batch("in_progress", queued=2, answered=1) for _ in range(5)), batch("completed", answered=3))

    assert capsys.readouterr().out.splitlines() == [
        "in_progress: 1 answered · 0 running · 2 queued · 0.001000 USD · 1 min 5 s left",
        "completed: 3 answered · 0 running · 0 queued · 0.001000 USD",
    ]


def test_on_a_terminal_a_bar_shows_how_many_lines_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(progress, "console", lambda: Console(file=screen, force_terminal=True, width=80))

    wait(batch("in_progress", queued=1, parked=1, answered=2), batch("completed", answered=4))

    shown = Text.from_ansi(screen.getvalue()).plain
    assert "in progress" in shown
    assert "4/4" in shown
    assert "4 answered · 0 running · 0 queued · 0.001000 USD" in shown


def test_ctrl_c_says_that_the_batch_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", interrupt)

    with pytest.raises(KeyboardInterrupt):
        wait(batch("in_progress", queued=1))
    assert "the batch goes on. See `allotd batch status batch_1`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (125, "2 min 5 s"), (7_500, "2 h 5 min")]
)
def test_durations_are_told_as_people_do(seconds: float, words: str) -> None:
    assert progress.duration(seconds) == words


def wait(*answers: dict[str, Any] | Exception) -> waiting.Ending:
    return waiting.wait(cast(Api, Script(*answers)), "batch_1", is_quiet=False)


def batch(status: str, **states: int) -> dict[str, Any]:
    return {
        "id": "batch_1",
        "status": status,
        "output_file_id": None,
        "error_file_id": None,
        "request_counts": {"total": sum(states.values()), "completed": 0, "failed": states.get("failed", 0)},
        "allotd": {"states": states, "spent_nanousd": 1_000_000, "parked": [], "eta_s": 65.0},
    }
