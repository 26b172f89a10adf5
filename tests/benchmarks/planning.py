"""What planning and settling cost per query, and the housekeeping of a tick, while the queue grows from 1k to 50k.

Beside the queued queries of four tenants, as many again are parked under a full cap, and as many belong to a batch that
is still being taken in: what must not be looked at one by one in every tick.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import TypeVar, cast

from sqlalchemy import Table as SqlTable
from sqlalchemy import insert, select
from sqlalchemy.orm import Session, sessionmaker

from models.tables import Attempt, Batch, CapPeriod, QueryRow
from scheduler import ledger, settlement
from scheduler.batch_view import batch_object
from scheduler.budgets import ALLOTTED, allot_window
from scheduler.core.fairness import DeficitRoundRobin
from scheduler.core.periods import Period, period_bounds
from scheduler.daemon import Daemon
from scheduler.database import looking
from scheduler.dispatch import make_celery
from scheduler.drafts import draft_plans
from scheduler.errors import SchedulerError
from scheduler.ledger import Reservation, Settlement, WaveRequest
from scheduler.logs import configure_logging
from scheduler.planning import choose_window
from scheduler.settings import Settings
from scheduler.settlement import Work
from scheduler.states import AttemptState, BatchState, QueryState
from scheduler.transactions import GROUP_MAX
from scheduler.types import Outcome, Sample, Usage
from scheduler.wiring import Services
from tests.benchmarks.figures import Figure, print_figures
from tests.factories import MODEL, NOW, WORKER, add_batch, add_cap, add_tenant, add_worker, new_sessions
from tests.services import postgres_server

SIZES = (1_000, 10_000, 50_000)
TENANTS = 4
WINDOW = 160
WINDOWS = 5
"""Rounds: windows planned and settled at each size. The smallest queue holds one more, which is not counted."""
GROWTH_MAX = 1.5
"""How much dearer a query or a tick may be at 50k than at 1k: deeper trees and colder pages, not a longer search."""
LIMIT_NANOUSD = 10**12
SCARCE_NANOUSD = 320
"""What the tenants' own cap leaves for each of their queries: one sample, so that every window has to be priced."""
EVER, _ = period_bounds(Period.TOTAL, NOW, "UTC")
ROWS_AT_ONCE = 1000
QUERIES = cast("SqlTable", QueryRow.__table__)
PER_QUERY = ("plan", "send", "claim", "reserve", "settle", "end")
PER_TICK = ("take back", "call off", "resume", "finish")
PER_READ = ("batch object", "predict", "allot")
T = TypeVar("T")


@dataclass(slots=True)
class Costs:
    """Seconds per step, of each round."""

    rounds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def open_round(self) -> None:
        """Begin to count from 0."""
        for name in (*PER_QUERY, *PER_TICK, *PER_READ):
            self.rounds[name].append(0.0)

    def time(self, name: str, step: Callable[[], T]) -> T:
        """Run a step and add its time to this round."""
        begun = time.perf_counter()
        result = step()
        self.rounds[name][-1] += time.perf_counter() - begun
        return result

    def sums(self, names: Sequence[str]) -> list[float]:
        """Seconds of these steps together, of each round."""
        return [sum(parts) for parts in zip(*(self.rounds[name] for name in names), strict=True)]


def run() -> list[Figure]:
    """Measure both databases at all sizes, and print what every step costs."""
    configure_logging(Settings(log_level="WARNING"))
    figures = []
    with tempfile.TemporaryDirectory() as directory, postgres_server(survives_crashes=True) as server:
        urls = {
            "SQLite": [f"sqlite:///{Path(directory) / f'{size}.db'}" for size in SIZES],
            "PostgreSQL": [server.new_database() for _ in SIZES],
        }
        for database, of_sizes in urls.items():
            costs = {}
            for size, url in zip(SIZES, of_sizes, strict=True):
                with new_sessions(url) as sessions:
                    costs[size] = measure(sessions, size)
            print_costs(database, costs)
            figures += growth(database, costs)
    return figures


def measure(sessions: sessionmaker[Session], waiting: int) -> Costs:
    """Plan and settle windows out of a queue of `waiting` queries, beside as many parked and as many coming in."""
    settings = Settings(window_size=WINDOW)
    fill(sessions, waiting, settings)
    services = Services(settings=settings, sessions=sessions, clock=lambda: NOW)
    daemon = Daemon(services=services, celery=make_celery("memory://"))
    costs = Costs()
    for _ in range(1 + WINDOWS):  # the first builds statements, the vocabulary and the broker's connection
        costs.open_round()
        costs.time("take back", daemon.take_back)
        costs.time("call off", daemon.call_off)
        costs.time("resume", daemon.resume)
        think(daemon, costs)
        costs.time("plan", daemon.plan)
        costs.time("send", daemon.send)
        settled = work_off(sessions, settings, costs)
        assert settled == settings.window_size, f"{settled} queries in a window"
        costs.time("finish", daemon.finish)
        with sessions() as session:
            batch = session.scalars(select(Batch).order_by(Batch.id).limit(1)).one()
            costs.time("batch object", partial(batch_object, session, batch))
    for seconds in costs.rounds.values():
        del seconds[0]
    return costs


def think(daemon: Daemon, costs: Costs) -> None:
    """Time once more, by themselves, those parts of `plan` that predict and that allocate; nothing is written."""
    settings = daemon.services.settings
    with looking(daemon.services.sessions) as session:
        rows = choose_window(session, DeficitRoundRobin(), settings, NOW)
        drafts = costs.time("predict", partial(draft_plans, session, rows, daemon.predictor, settings, NOW))
        window = costs.time("allot", partial(allot_window, session, drafts, settings, NOW, may_abandon=False))
    assert all(draft.plan.price > 0 for draft in window.drafts if draft.policy == ALLOTTED), "the caps bind"


def work_off(sessions: sessionmaker[Session], settings: Settings, costs: Costs) -> int:
    """What a worker does with a window, without a model: claim, hold, settle and end, in its groups."""
    with sessions() as session:
        sent = session.scalars(select(Attempt.id).where(Attempt.state == AttemptState.DISPATCHED)).all()
    by_tenant: dict[str, list[Work]] = defaultdict(list)
    for bundle in groups(sent, settings.bundle_size):
        for work in costs.time("claim", partial(committed, sessions, settlement.claim, bundle, WORKER)):
            by_tenant[work.funded.tenant_id].append(work)
    for works in by_tenant.values():
        for group in groups(works, GROUP_MAX):
            waves = [wave_of(work) for work in group]
            holds = costs.time("reserve", partial(committed, sessions, ledger.reserve_all, waves))
            used = [used_by(work, hold) for work, hold in zip(group, holds, strict=True)]
            kept = costs.time("settle", partial(committed, sessions, ledger.settle_all, used))
            ends = [ending_of(settled, row_ids) for settled, row_ids in zip(used, kept, strict=True)]
            costs.time("end", partial(committed, sessions, settlement.end_all, ends))
    return sum(map(len, by_tenant.values()))


def committed(sessions: sessionmaker[Session], step: Callable[..., T], *arguments: object) -> T:
    """Run a step in a transaction of its own."""
    with sessions.begin() as session:
        return step(session, *arguments, NOW)


def wave_of(work: Work) -> WaveRequest:
    """A wave of one sample."""
    return WaveRequest(
        funded=work.funded,
        samples=1,
        tokens_max=work.plan.tokens_max,
        tokens_floor=work.plan.tokens_max,
        prompt_tokens=work.query.prompt_tokens_max,
    )


def used_by(work: Work, hold: Reservation | SchedulerError) -> Settlement:
    """What that wave is said to have used: all that was held, so that the caps go on binding."""
    assert isinstance(hold, Reservation), hold
    text = "so we take it step by step and the answer is 21."
    sample = Sample(text=text, tokens=work.plan.tokens_max, answer="21", correct=True)
    usage = Usage(prompt=work.query.prompt_tokens, completion=sample.tokens)
    return Settlement(funded=work.funded, wave_id=hold.wave_id, usage=usage, latency_s=1.0, samples=(sample,))


def ending_of(settled: Settlement, row_ids: tuple[int, ...] | SchedulerError) -> settlement.Ending:
    """The end of its query."""
    assert not isinstance(row_ids, SchedulerError), row_ids
    outcome = Outcome(chosen=settled.samples[0], because="one sample")
    return settlement.answered(settled.funded, QueryState.ANSWERED, outcome, row_ids[0])


def fill(sessions: sessionmaker[Session], waiting: int, settings: Settings) -> None:
    """`waiting` queued queries of several tenants, as many parked under a full cap, as many still being taken in."""
    with sessions.begin() as session:
        for number in range(TENANTS):
            tenant = add_tenant(session, f"tenant-{number}")
            add_cap(session, tenant, waiting // TENANTS * SCARCE_NANOUSD)
            add_cap(session, tenant, LIMIT_NANOUSD, period="month", model=MODEL)
            add_queries(session, add_batch(session, tenant, lines_read=waiting // TENANTS), waiting // TENANTS)
        poor = add_tenant(session, "poor")
        full = add_cap(session, poor, 1)
        session.add(CapPeriod(cap_id=full.id, starts_at=EVER, spent_nanousd=1))
        parked = {"state": QueryState.PARKED, "parked_because": "its cap", "parked_need_nanousd": 1_000}
        add_queries(session, add_batch(session, poor), waiting, **parked)
        coming = add_tenant(session, "coming")
        add_queries(session, add_batch(session, coming, state=BatchState.VALIDATING), waiting)
        add_worker(session, capacity=settings.window_size)


def add_queries(session: Session, batch: Batch, number: int, **values: object) -> None:
    """Graded sums, inserted as intake does it."""
    session.flush()
    for first in range(0, number, ROWS_AT_ONCE):
        rows = [query_values(batch, line) | values for line in range(first, min(number, first + ROWS_AT_ONCE))]
        session.execute(insert(QUERIES), rows)


def query_values(batch: Batch, line: int) -> dict[str, object]:
    """A row as intake writes it."""
    question = f"A shelf holds {line} books and {line % 97} more arrive. How many are there now? Answer with a number."
    body = {"model": MODEL, "messages": [{"role": "user", "content": question}], "max_tokens": 128}
    return {
        "batch_id": batch.id,
        "tenant_id": batch.tenant_id,
        "line": line + 1,
        "custom_id": f"question-{line}",
        "state": QueryState.QUEUED,
        "model": MODEL,
        "body_json": json.dumps(body),
        "strategy": "auto",
        "verifier": "numeric",
        "reference": str(line + line % 97),
        "created_at": NOW,
    }


def groups(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The items in order, `size` at a time."""
    return (items[first : first + size] for first in range(0, len(items), size))


def growth(database: str, costs: dict[int, Costs]) -> list[Figure]:
    """How much dearer a query and a tick are in the longest queue than in the shortest."""
    smallest, largest = costs[SIZES[0]], costs[SIZES[-1]]
    named = {"planning and settling a query": PER_QUERY, "a tick's housekeeping": PER_TICK}
    tick = largest.sums(("plan", "send", *PER_TICK))
    shares = [
        Figure(
            name=f"{what} as a share of a tick at {SIZES[-1] // 1000}k queued, {database}",
            rounds=tuple(part / whole for part, whole in zip(largest.sums(steps), tick, strict=True)),
        )
        for what, steps in (("predicting and allotting", ("predict", "allot")), ("allotting", ("allot",)))
    ]
    return shares + [
        Figure(
            name=f"{what} at {SIZES[-1] // 1000}k / at {SIZES[0] // 1000}k, {database}",
            rounds=tuple(seconds / median(smallest.sums(names)) for seconds in largest.sums(names)),
            at_most=GROWTH_MAX,
        )
        for what, names in named.items()
    ]


def print_costs(database: str, costs: dict[int, Costs]) -> None:
    """The median of each step at each size."""
    print(f"\n{database:<24}" + "".join(f"{f'{size // 1000}k queued':>12}" for size in costs))
    for unit, names, divisor in (
        ("us/query", PER_QUERY, WINDOW * 1e-6),
        ("ms/tick", PER_TICK, 1e-3),
        ("ms/call", PER_READ, 1e-3),
    ):
        for name in (*names, *(["together"] if len(names) > 1 else [])):
            seconds = [median(one.sums(names if name == "together" else [name])) for one in costs.values()]
            told = "".join(f"{second / divisor:>12.1f}" for second in seconds)
            print(f"  {name:<13} {unit:<8}{told}")


if __name__ == "__main__":
    print_figures(run())
