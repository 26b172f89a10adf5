"""/v1/engines: the workers and the engines behind them, and how a quarantined one is let work again. For admins."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query

from scheduler import engines
from scheduler.api.bodies import StrictRoute
from scheduler.api.errors import documented
from scheduler.api.security import Admin
from scheduler.api.sessions import Now, Reading, WithServices, Writing
from scheduler.api.shapes import Page, Reply, epoch, epoch_or_none
from scheduler.engines import EngineState

router = APIRouter(prefix="/v1/engines", tags=["engines"], route_class=StrictRoute)


class EngineReply(Reply):
    """A worker and its engine. A `silent` one has sent no heartbeat for longer than its lease."""

    id: str
    object: Literal["engine"] = "engine"
    engine: str | None
    state: EngineState
    capacity: int
    running: int
    started_at: int
    heartbeat_at: int
    stopped_at: int | None
    quarantined_because: str | None


@router.get("", responses=documented())
def list_engines(
    _caller: Admin,
    services: WithServices,
    session: Reading,
    now: Now,
    every: Annotated[bool, Query(alias="all", description="Those too that have stopped.")] = False,
) -> Page[EngineReply]:
    """Workers and their engines, newest first."""
    found = engines.list_engines(session, now, services.settings.lease_s, every=every)
    return Page(data=[_engine(status) for status in found])


@router.post("/{worker_id}/release", responses=documented(409))
def release_engine(worker_id: str, _caller: Admin, services: WithServices, session: Writing, now: Now) -> EngineReply:
    """Give a quarantined engine work again, through all workers that ask it."""
    return _engine(engines.release(session, worker_id, now, services.settings.lease_s))


def _engine(status: engines.EngineStatus) -> EngineReply:
    return EngineReply(
        id=status.worker_id,
        engine=status.engine,
        state=status.state,
        capacity=status.capacity,
        running=status.running,
        started_at=epoch(status.started_at),
        heartbeat_at=epoch(status.heartbeat_at),
        stopped_at=epoch_or_none(status.stopped_at),
        quarantined_because=status.quarantined_because,
    )
