"""A database session per request: reads see one instant, writes are committed before the reply goes out."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from scheduler.database import reading
from scheduler.wiring import Services


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


WithServices = Annotated[Services, Depends(_services)]


def _now(services: WithServices) -> datetime:
    return services.clock()


def _reading(services: WithServices) -> Iterator[Session]:
    with reading(services.sessions) as session:
        yield session


def _writing(services: WithServices) -> Iterator[Session]:
    with services.sessions.begin() as session:
        yield session


Now = Annotated[datetime, Depends(_now)]
# The scope "function" ends them when the route's function returns; FastAPI's default would commit after the reply.
Reading = Annotated[Session, Depends(_reading, scope="function")]
Writing = Annotated[Session, Depends(_writing, scope="function")]
