"""How the progress of a batch is shown: a live bar on a terminal, plain lines elsewhere, nothing for programs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from scheduler.cli.output import complaints, console, usd
from scheduler.states import BATCH_FINAL, QueryState

LINE_EVERY_S = 5.0
"""Where there is no terminal, one line at most this often."""
ACTIVE = (QueryState.QUEUED, QueryState.PLANNED, QueryState.RUNNING)


class Shown(Protocol):
    """Where progress is shown."""

    def update(self, batch: Mapping[str, Any]) -> None:
        """Show how far the batch is."""

    def remark(self, words: str) -> None:
        """Say something beside it."""


@contextmanager
def shown_progress(batch_id: str, is_quiet: bool) -> Iterator[Shown]:
    """Where the progress of a wait is shown; Ctrl-C says that the batch goes on."""
    try:
        if is_quiet:
            yield _Silence()
        elif console().is_terminal:
            with _Bar() as bar:
                yield bar
        else:
            yield _Lines()
    except KeyboardInterrupt:
        complaints().print(
            Text(f"No longer watching; the batch goes on. See `allotd batch status {batch_id}`."), soft_wrap=True
        )
        raise


class _Silence:
    def update(self, batch: Mapping[str, Any]) -> None:
        """Nothing."""

    def remark(self, words: str) -> None:
        """Nothing."""


class _Lines:
    """One line when something has changed, now and then."""

    def __init__(self) -> None:
        self._said = ""
        self._said_at = float("-inf")

    def update(self, batch: Mapping[str, Any]) -> None:
        """Say how far it is, unless that was just said."""
        words = f"{batch['status']}: {_summary(batch)}"
        now = time.monotonic()
        is_due = now - self._said_at >= LINE_EVERY_S or batch["status"] in BATCH_FINAL
        if words != self._said and is_due:
            console().print(Text(words), soft_wrap=True)
            self._said, self._said_at = words, now

    def remark(self, words: str) -> None:
        """Say it."""
        complaints().print(Text(words), soft_wrap=True)


class _Bar:
    """A live progress bar, and below it what a bar cannot say."""

    def __init__(self) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self._task = self._progress.add_task("", total=None)
        self._live = Live(self._progress, console=console(), refresh_per_second=4)

    def __enter__(self) -> _Bar:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def update(self, batch: Mapping[str, Any]) -> None:
        """Move the bar."""
        states = batch["allotd"]["states"]
        total, waiting = sum(states.values()), sum(states.get(state, 0) for state in (*ACTIVE, QueryState.PARKED))
        self._progress.update(
            self._task, total=total or None, completed=total - waiting, description=batch["status"].replace("_", " ")
        )
        self._live.update(Group(self._progress, Text(f"  {_summary(batch)}")), refresh=True)

    def remark(self, words: str) -> None:
        """Say it above the bar."""
        self._live.console.print(Text(words))


def _summary(batch: Mapping[str, Any]) -> str:
    ours = batch["allotd"]
    states = ours["states"]
    queued = states.get(QueryState.QUEUED, 0) + states.get(QueryState.PLANNED, 0)
    parts = [
        f"{states.get(QueryState.ANSWERED, 0)} answered",
        f"{states.get(QueryState.RUNNING, 0)} running",
        f"{queued} queued",
        *(
            f"{states[state]} {state.replace('_', ' ')}"
            for state in QueryState
            if state not in (*ACTIVE, QueryState.ANSWERED) and states.get(state)
        ),
        f"{usd(ours['spent_nanousd'])} USD",
    ]
    eta_s = ours.get("eta_s")
    if eta_s is not None and any(states.get(state) for state in ACTIVE):
        parts.append(f"{duration(eta_s)} left")
    return " · ".join(parts)


def duration(seconds: float) -> str:
    """A length of time for people: 45 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {left} s" if minutes else f"{left} s"
