"""How a command waits for a batch: until it is over or money runs out, and what is said and exited with then."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from scheduler.cli.client import Api, Refused, Unreachable, part
from scheduler.cli.output import moment, usd
from scheduler.cli.progress import ACTIVE, Shown, shown_progress
from scheduler.errors import SchedulerError
from scheduler.states import BATCH_FINAL, BatchState, QueryState

POLL_S = 0.3
POLL_MAX_S = 2.0
PATIENCE_S = 120.0
"""How long a server that is being restarted may be away."""
SETTLED_S = 2.0
"""Lines may be parked for a moment while others hold money; only when this lasts is nothing going to happen."""
FAILED, NO_MONEY, UNANSWERED = 1, 3, 4
EXIT_CODES = "\n\n".join(
    (
        "Exit code after --wait:",
        "0: every line has an answer.",
        "1: the batch failed, was cancelled or expired, or this command failed.",
        "2: an option or a value is wrong.",
        "3: money ran out: lines wait for a cap to be raised, or met their own or the batch's limit.",
        "4: some lines have no answer for another reason.",
    )
)
"""For the help of the commands that wait."""
RETRYABLE_STATUS = 500

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


def wait(api: Api, batch_id: str, *, is_quiet: bool) -> Ending:
    """Wait until a batch is final, or until all of its open lines are parked."""
    parked_since: float | None = None
    pause_s = POLL_S
    with shown_progress(batch_id, is_quiet) as shown:
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
