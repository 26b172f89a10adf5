"""A client that waits for one answer: it gets it, or a reason, and leaving cancels."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi.testclient import TestClient
from sqlalchemy import select, update

from models.tables import Batch, QueryRow
from scheduler.api.app import create_app
from scheduler.states import BatchState, QueryState
from scheduler.wiring import Services
from tests.factories import MODEL, NOW
from tests.services import free_port

QUESTION = {"model": MODEL, "messages": [{"role": "user", "content": "What is 2 + 3?"}], "max_tokens": 10}
PATH = "/v1/chat/completions"


@contextmanager
def meanwhile(services: Services, **values: Any) -> Iterator[None]:
    """Let a worker's part happen while the client waits: the query, when it comes, gets these values."""

    def work() -> None:
        for _ in range(200):
            with services.sessions.begin() as session:
                if session.scalars(update(QueryRow).values(**values).returning(QueryRow.id)).all():
                    return
            time.sleep(0.01)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        yield
    finally:
        worker.join()


def states(services: Services) -> tuple[str, str]:
    """Those of the one query and of its batch."""
    with services.sessions() as session:
        return session.scalars(select(QueryRow.state)).one(), session.scalars(select(Batch.state)).one()


def test_no_answer_in_time_cancels_the_query_and_is_not_asked_again(
    api: TestClient, auth: dict[str, str], services: Services
) -> None:
    reply = api.post(PATH, json=QUESTION, headers=auth)

    assert (reply.status_code, reply.json()["error"]["code"]) == (504, "timeout")
    assert reply.headers["x-should-retry"] == "false"
    assert states(services) == (QueryState.CANCELLED, BatchState.CANCELLING)


def test_a_failed_query_is_told_with_its_reason(api: TestClient, auth: dict[str, str], services: Services) -> None:
    error = '{"code": "engine_rejected", "message": "The prompt is too long."}'

    with meanwhile(services, state=QueryState.FAILED, finished_at=NOW, error_json=error):
        reply = api.post(PATH, json=QUESTION, headers=auth)

    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "engine_rejected")
    assert reply.json()["error"]["message"] == "The prompt is too long."


def test_a_query_that_no_cap_can_pay_is_refused_at_once(
    api: TestClient, auth: dict[str, str], services: Services
) -> None:
    with meanwhile(services, state=QueryState.PARKED, parked_because="cap cap_1 (day)"):
        reply = api.post(PATH, json=QUESTION, headers=auth)

    assert (reply.status_code, reply.json()["error"]["type"]) == (429, "insufficient_quota")
    assert "cap cap_1 (day)" in reply.json()["error"]["message"]
    assert reply.headers["x-should-retry"] == "false"
    assert states(services)[0] == QueryState.BUDGET_STOPPED


@pytest.mark.parametrize(
    ("state", "status"), [(QueryState.ABANDONED, 409), (QueryState.EXPIRED, 409), (QueryState.CANCELLED, 409)]
)
def test_other_ends_without_an_answer_are_told_apart(
    api: TestClient, auth: dict[str, str], services: Services, state: QueryState, status: int
) -> None:
    with meanwhile(services, state=state, finished_at=NOW):
        reply = api.post(PATH, json=QUESTION, headers=auth)

    assert (reply.status_code, reply.json()["error"]["code"]) == (status, state.value)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"model": "none"}, "model"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"allotd": {"colour": "red"}}, "allotd"),
        ({"stream": True}, "stream"),
    ],
)
def test_a_question_that_cannot_be_asked_names_what_is_wrong(
    api: TestClient, auth: dict[str, str], change: dict[str, Any], param: str
) -> None:
    reply = api.post(PATH, json={**QUESTION, **change}, headers=auth)

    assert reply.status_code in {400, 404}
    assert reply.json()["error"]["param"].startswith(param)


def test_interactive_questions_are_not_listed_among_batches(
    api: TestClient, auth: dict[str, str], services: Services
) -> None:
    with meanwhile(services, state=QueryState.FAILED, finished_at=NOW):
        api.post(PATH, json=QUESTION, headers=auth)

    assert api.get("/v1/batches", headers=auth).json()["data"] == []


def test_a_client_that_leaves_cancels_its_query(services: Services, auth: dict[str, str]) -> None:
    patient = Services(
        settings=services.settings.model_copy(update={"engine_timeout_s": 60.0}),
        sessions=services.sessions,
        clock=services.clock,
    )

    with serving(patient) as url, pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}{PATH}", json=QUESTION, headers=auth, timeout=0.5, trust_env=False)

    wait_until(lambda: states(services)[0] == QueryState.CANCELLED)


@contextmanager
def serving(services: Services) -> Iterator[str]:
    """The application behind a real server, in a thread."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(create_app(services), port=port, log_config=None, lifespan="on"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait for something that happens soon."""
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)
