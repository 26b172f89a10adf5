"""How a command waits for a batch: with a live bar on a terminal, with plain lines elsewhere, until money runs out."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from scheduler.cli.client import Api, Refused, Unreachable, part
from scheduler.cli.output import complaints, console, moment, usd
from scheduler.errors import SchedulerError
from scheduler.states import BATCH_FINAL, BatchState, QueryState

POLL_S = 0.3
POLL_MAX_S = 2.0
LINE_EVERY_S = 5.0
"""Where there is no terminal, one line at most this often."""
PATIENCE_S = 120.0
"""How long a server that is being restarted may be away."""
SETTLED_S = 2.0
"""Lines may be parked for a moment while others hold money; only when this lasts is nothing going to happen."""
FAILED, NO_MONEY, UNANSWERED = 1, 3, 4
EXIT_CODES = """Exit code: 0 when every line has an answer; 1 when the batch failed, was cancelled or expired, or the
command itself failed; 2 for a wrong option or value; 3 when money ran out, for lines that wait for a cap to be raised
or were stopped by a limit of their own or of the batch; 4 when some lines have no answer for another reason."""
"""For the help of the commands that wait."""
RETRYABLE_STATUS = 500

ACTIVE = (QueryState.QUEUED, QueryState.PLANNED, QueryState.RUNNING)
_CAP = re.compile(r"cap_[0-9a-f]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How a wait ended: the batch as it was last seen, and the caps of its tenant where money ran out."""

    batch: dict[str, Any]
    is_parked: bool = False
    caps: tuple[Mapping[str, Any], ...] = ()

    @property
    def exit_code(self) -> int:
        """What the command exits with."""
        if self.is_parked:
            return NO_MONEY
        if self.batch["status"] != BatchState.COMPLETED:
            return FAILED
        if self.batch["allotd"]["states"].get(QueryState.BUDGET_STOPPED):
            return NO_MONEY
        return UNANSWERED if self.batch["request_counts"]["failed"] else 0


class Shown(Protocol):
    """Where progress is shown."""

    def update(self, batch: Mapping[str, Any]) -> None:
        """Show how far the batch is."""

    def remark(self, words: str) -> None:
        """Say something beside it."""


def wait(api: Api, batch_id: str, *, is_quiet: bool) -> Ending:
    """Wait until a batch is final, or until all of its open lines are parked."""
    parked_since: float | None = None
    pause_s = POLL_S
    with _shown(batch_id, is_quiet) as shown:
        while True:
            batch = _patiently(api, batch_id, shown)
            shown.update(batch)
            if batch["status"] in BATCH_FINAL:
                return Ending(batch=batch)
            parked_since = (parked_since or time.monotonic()) if is_stuck(batch) else None
            if parked_since is not None and time.monotonic() - parked_since > SETTLED_S:
                return Ending(batch=batch, is_parked=True, caps=_caps(api))
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.2, POLL_MAX_S)


def is_stuck(batch: Mapping[str, Any]) -> bool:
    """Whether every line that is still open waits for money."""
    states = batch["allotd"]["states"]
    has_active = any(states.get(state) for state in ACTIVE)
    return batch["status"] == BatchState.IN_PROGRESS and bool(states.get(QueryState.PARKED)) and not has_active


def final_words(ending: Ending) -> str:
    """How it ended, and what to do next."""
    batch, ours = ending.batch, ending.batch["allotd"]
    if ending.is_parked:
        return "\n".join(["", *_parked_words(ending)])
    counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in ours["states"].items() if count)
    words = f"Batch {batch['id']} is {batch['status']}: {counts or 'no lines'}; {usd(ours['spent_nanousd'])} USD spent."
    hints = [f"allotd batch {name} {batch['id']}" for name in ("output", "errors") if batch.get(_FILE[name])]
    reasons = [error["message"] for error in ((batch.get("errors") or {}).get("data") or [])[:5]]
    stopped = ours["states"].get(QueryState.BUDGET_STOPPED, 0)
    more = [f"{stopped} were stopped by a limit of their own or of the batch. {_SEND_AGAIN}"] if stopped else []
    return "\n".join([words, *reasons, *more, *(f"See `{hint}`." for hint in hints)])


_SEND_AGAIN = (
    "Send them again with a higher one (cost_max_usd on their lines, or for the batch): "
    "allotd batch submit FILE --max-cost USD --wait"
)


_FILE = {"output": "output_file_id", "errors": "error_file_id"}


def _parked_words(ending: Ending) -> Iterator[str]:
    ours = ending.batch["allotd"]
    waiting = ours["states"].get(QueryState.PARKED, 0)
    yield f"{waiting} lines of batch {ending.batch['id']} wait for money; {usd(ours['spent_nanousd'])} USD spent."
    by_id = {cap["id"]: cap for cap in ending.caps}
    for parked in ours["parked"]:
        because = parked["because"] or "unknown"
        named = _CAP.search(because)
        cap = by_id.get(named[0]) if named else None
        if cap is not None:
            yield _stopped_by_cap(parked["queries"], cap)
        elif because == "batch":
            limit = usd(ours.get("limit_nanousd"))
            yield f"{parked['queries']} are stopped by the batch's own limit of {limit} USD. {_SEND_AGAIN}"
        elif because == "query":
            yield f"{parked['queries']} are stopped by their own cost_max_usd. {_SEND_AGAIN}"
        else:
            yield f"{parked['queries']} are stopped by: {because}."


def _stopped_by_cap(queries: int, cap: Mapping[str, Any]) -> str:
    spent, limit = usd(cap["spent_nanousd"]), usd(cap["limit_nanousd"])
    model = f" --model {cap['model']}" if cap["model"] else ""
    turns = f" It turns at {moment(cap['turns_at'])}." if cap["turns_at"] else ""
    return (
        f"{queries} are stopped by the {cap['period']} cap of {cap['tenant_name']}: {spent} of {limit} USD are spent."
        f"{turns} Raise it, and they go on by themselves: "
        f"allotd cap set {cap['tenant_name']} USD --per {cap['period']}{model}"
    )


def _patiently(api: Api, batch_id: str, shown: Shown) -> dict[str, Any]:
    """The batch; a server that is away for a while is waited for."""
    deadline = time.monotonic() + PATIENCE_S
    is_told = False
    while True:
        try:
            return api.get(f"/v1/batches/{part(batch_id)}")
        except (Unreachable, Refused) as error:
            if time.monotonic() > deadline or not _may_pass(error):
                raise
            if not is_told:
                shown.remark(f"{error.message} Trying on for {PATIENCE_S:.0f} s; the batch itself is safe.")
                is_told = True
        time.sleep(POLL_MAX_S)


def _may_pass(error: SchedulerError) -> bool:
    return isinstance(error, Unreachable) or int(error.attributes.get("status", 0)) >= RETRYABLE_STATUS


def _caps(api: Api) -> tuple[Mapping[str, Any], ...]:
    try:
        return tuple(api.pages("/v1/caps"))
    except SchedulerError:
        return ()  # the words then name the cap by its id only


@contextmanager
def _shown(batch_id: str, is_quiet: bool) -> Iterator[Shown]:
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
