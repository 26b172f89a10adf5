"""Which queries are probed before their turn comes, what is kept of it, and what happens without a probe server."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session, sessionmaker

from models.tables import Alert, Batch, ProbeRow, QueryRow, Tenant
from scheduler import probes, probing_ahead
from scheduler.core.fairness import DeficitRoundRobin
from scheduler.daemon import Daemon
from scheduler.dispatch import make_celery
from scheduler.drafts import draft_plans
from scheduler.errors import EngineUnavailable
from scheduler.planning import choose_window
from scheduler.prediction import FixedPriors
from scheduler.probing import PLAIN
from scheduler.probing_ahead import ALERT_AFTER, Prober
from scheduler.settings import Settings
from scheduler.states import BatchState, QueryState
from scheduler.types import AlertKind, Probe
from scheduler.wiring import Services
from tests.factories import MODEL, NOW, add_batch, add_query, add_tenant, add_worker, new_sessions

SETTINGS = Settings(window_size=16)
VIEW = "small-layer2"
PATIENCE_S = 2.0
ACME = "tenant_acme", MODEL


@dataclass
class ProbeServer:
    """A pooling server as the daemon sees one: a prompt's vector is its length and 1."""

    url: str = ""
    asked: list[str] = field(default_factory=list)
    status: int = 200
    answer: bytes | None = None
    odd: bytes | None = None
    """What it answers to all but the plain prompt that it is greeted with."""


@pytest.fixture
def server() -> Iterator[ProbeServer]:
    told = ProbeServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.say(200, json.dumps({"data": [{"id": VIEW}]}).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prompt = body["messages"][0]["content"]
            if prompt != PLAIN:
                told.asked.append(prompt)
            if "too odd" in prompt:
                self.say(400, b"{}")
            elif "it breaks" in prompt:
                self.say(500, b"{}")
            elif told.odd is not None and prompt != PLAIN:
                self.say(200, told.odd)
            else:
                vector = json.dumps({"data": [{"embedding": [float(len(prompt)), 1.0]}]}).encode()
                self.say(told.status, vector if told.answer is None else told.answer)

        def say(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128  # 5 by default, and further connections are reset

    with Server(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        told.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
        yield told
        http.shutdown()


@pytest.fixture
def factory() -> Iterator[sessionmaker[Session]]:
    with new_sessions() as sessions:
        yield sessions


@pytest.fixture
def prober(factory: sessionmaker[Session], server: ProbeServer) -> Prober:
    return Prober(services=Services(settings=SETTINGS, sessions=factory, clock=lambda: NOW), url=server.url)


@contextmanager
def queue(factory: sessionmaker[Session], name: str = "acme") -> Iterator[tuple[Session, Batch]]:
    """A tenant's batch, to put queries in."""
    with factory.begin() as session:
        yield session, add_batch(session, add_tenant(session, name))


def kept(factory: sessionmaker[Session]) -> dict[int, list[float] | None]:
    with factory() as session:
        return {
            row.query_id: None if row.vector is None else np.frombuffer(row.vector, probes.PROBE_TYPE).tolist()
            for row in session.scalars(select(ProbeRow))
        }


def test_queries_that_wait_are_probed_once(factory: sessionmaker[Session], prober: Prober, server: ProbeServer) -> None:
    with queue(factory) as (session, batch):
        ids = [add_query(session, batch, question).id for question in ("one", "three")]
        add_query(session, batch, "planned already", state=QueryState.PLANNED)

    assert prober.advance()
    assert not prober.advance()

    assert sorted(server.asked) == ["one", "three"]
    assert kept(factory) == {ids[0]: [3.0, 1.0], ids[1]: [5.0, 1.0]}
    with factory() as session:
        assert probes.probes_of(session, ids)[ids[0]].view == VIEW


def test_those_whose_turn_comes_first_are_probed_first_whoever_they_belong_to(factory: sessionmaker[Session]) -> None:
    with queue(factory, "large") as (session, batch):
        late = [add_query(session, batch, f"large {i}").id for i in range(5)]
        urgent = add_query(session, batch, "urgent", priority=9).id
    with queue(factory, "small") as (session, batch):
        small = add_query(session, batch, "small").id

    with factory() as session:
        assert set(probes.wanted(session, 3)) == {urgent, small, late[0]}


def test_no_more_are_probed_ahead_than_soon_have_their_turn(
    factory: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "AHEAD", 4)
    with queue(factory) as (session, batch):
        ids = [add_query(session, batch, f"{i}").id for i in range(9)]

    with factory.begin() as session:
        assert list(probes.wanted(session, 100)) == ids[:4]
        probes.keep(session, VIEW, dict.fromkeys(ids[:4], (1.0,)))
        assert not probes.wanted(session, 100)


def test_queries_of_a_batch_that_was_called_off_are_not_probed(factory: sessionmaker[Session]) -> None:
    with queue(factory) as (session, batch):
        add_query(session, batch)
        batch.state = BatchState.CANCELLING

    with factory() as session:
        assert not probes.wanted(session, 10)


def test_a_prompt_that_is_refused_is_not_asked_again_and_its_query_has_no_probe(
    factory: sessionmaker[Session], prober: Prober, server: ProbeServer
) -> None:
    with queue(factory) as (session, batch):
        odd, plain = add_query(session, batch, "too odd").id, add_query(session, batch, "one").id

    prober.advance()
    prober.advance()

    assert len(server.asked) == 2
    assert kept(factory) == {odd: None, plain: [3.0, 1.0]}
    with factory() as session:
        assert set(probes.probes_of(session, [odd, plain])) == {plain}


@pytest.mark.parametrize(
    ("status", "answer", "words"),
    [
        (500, b"out of memory", "answers 500"),
        (404, b"no such route", "answers 404"),
        (200, b"<html>", "no JSON"),
        (200, b'{"data": []}', "no pooling server"),
        (200, b'{"data": [{"embedding": []}]}', "is empty"),
    ],
)
def test_a_server_that_is_ill_loses_no_query_its_probe_and_people_are_told_where_it_lasts(
    factory: sessionmaker[Session], server: ProbeServer, status: int, answer: bytes, words: str
) -> None:
    now = NOW
    services = Services(settings=SETTINGS, sessions=factory, clock=lambda: now)
    prober = Prober(services=services, url=server.url)
    with queue(factory) as (session, batch):
        query_id = add_query(session, batch, "one").id
    server.status, server.answer = status, answer

    for _ in range(2):
        with pytest.raises(EngineUnavailable, match=words):
            prober.advance()
    assert not alerts(factory)
    now += ALERT_AFTER
    with pytest.raises(EngineUnavailable, match=words):
        prober.advance()
    assert [alert.kind for alert in alerts(factory)] == [AlertKind.PROBE_UNAVAILABLE]
    assert words in alerts(factory)[0].message

    server.status, server.answer = 200, None
    prober.advance()
    assert kept(factory) == {query_id: [3.0, 1.0]}


def alerts(factory: sessionmaker[Session]) -> list[Alert]:
    with factory() as session:
        return list(session.scalars(select(Alert)))


def test_a_server_that_is_gone_is_named(factory: sessionmaker[Session]) -> None:
    services = Services(settings=SETTINGS, sessions=factory, clock=lambda: NOW)
    with queue(factory) as (session, batch):
        add_query(session, batch)

    with pytest.raises(EngineUnavailable, match=r"http://127\.0\.0\.1:9/v1 does not name its model"):
        Prober(services=services, url="http://127.0.0.1:9/v1").advance()


def test_new_queries_wait_for_their_probe_and_no_longer_than_a_moment(factory: sessionmaker[Session]) -> None:
    with queue(factory) as (session, batch):
        add_worker(session)
        old = add_query(session, batch)
        old.created_at = NOW - timedelta(seconds=PATIENCE_S)
        probed, fresh = add_query(session, batch), add_query(session, batch)
        probes.keep(session, VIEW, {probed.id: [1.0]})

        assert window(session, probes.is_ready(NOW, PATIENCE_S)) == [old.id, probed.id]
        assert window(session, None) == [old.id, probed.id, fresh.id]


def window(session: Session, ready: ColumnElement[bool] | None, settings: Settings = SETTINGS) -> list[int]:
    return [row.id for row in choose_window(session, DeficitRoundRobin(), settings, NOW, ready)]


def test_who_waits_for_its_probe_keeps_no_place_from_others(factory: sessionmaker[Session]) -> None:
    with queue(factory) as (session, batch):
        add_worker(session)
        old = add_query(session, batch)
        old.created_at = NOW - timedelta(seconds=PATIENCE_S)
        for _ in range(3):
            add_query(session, batch, priority=9)

        assert window(session, probes.is_ready(NOW, PATIENCE_S), Settings(window_size=1)) == [old.id]


def test_a_query_whose_client_waits_does_not_wait_for_its_probe(factory: sessionmaker[Session]) -> None:
    with queue(factory) as (session, batch):
        add_worker(session)
        batch.interactive = True
        query = add_query(session, batch)

        assert window(session, probes.is_ready(NOW, PATIENCE_S)) == [query.id]


@pytest.mark.parametrize(("patience_s", "state"), [(0.0, QueryState.PLANNED), (60.0, QueryState.QUEUED)])
def test_the_daemon_waits_for_a_probe_as_long_as_it_is_told(
    factory: sessionmaker[Session], prober: Prober, patience_s: float, state: QueryState
) -> None:
    settings = SETTINGS.model_copy(update={"probe_patience_s": patience_s})
    services = Services(settings=settings, sessions=factory, clock=lambda: NOW)
    prober.advance()  # the server answers
    with queue(factory) as (session, batch):
        add_worker(session)
        query = add_query(session, batch)

    Daemon(services=services, celery=make_celery("memory://"), prober=prober).plan()

    with factory() as session:
        assert session.get_one(QueryRow, query.id).state == state


@pytest.mark.parametrize("patience_s", [-1.0, float("inf"), float("nan"), 1e12])
def test_a_patience_that_no_clock_could_add_is_refused(patience_s: float) -> None:
    with pytest.raises(ValidationError, match="probe_patience_s"):
        Settings(probe_patience_s=patience_s)


def test_only_a_server_that_answers_is_waited_for(prober: Prober, server: ProbeServer) -> None:
    assert not prober.is_answering
    prober.advance()
    assert prober.is_answering
    server.status = 500
    with prober.services.sessions.begin() as session:
        add_query(session, add_batch(session, add_tenant(session)))
    with pytest.raises(EngineUnavailable):
        prober.advance()
    assert not prober.is_answering


def test_after_any_error_nobody_waits_until_the_server_has_answered_again(
    tmp_path: Path, server: ProbeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with new_sessions(f"sqlite:///{tmp_path / 'allotd.db'}") as factory:
        settings = SETTINGS.model_copy(update={"probe_url": server.url})
        prober = probing_ahead.make_prober(Services(settings=settings, sessions=factory, clock=lambda: NOW))
        assert prober is not None
        prober.advance()

        def broken(*_: object) -> None:
            raise RuntimeError("nobody thought of this")

        monkeypatch.setattr(probes, "wanted", broken)
        with probing_ahead.probing(prober):
            deadline = time.monotonic() + 10
            while prober.is_answering and time.monotonic() < deadline:
                time.sleep(0.01)

        assert not prober.is_answering


def test_queries_of_disabled_tenants_are_not_probed(factory: sessionmaker[Session]) -> None:
    with queue(factory) as (session, batch):
        session.get_one(Tenant, batch.tenant_id).disabled_at = NOW
        add_query(session, batch)

        assert not probes.wanted(session, 10)


@pytest.mark.parametrize("vector", [b"[NaN, 1.0]", b"[1e39, 1.0]"], ids=["no number", "too large"])
def test_a_vector_that_no_predictor_could_read_is_not_kept(
    factory: sessionmaker[Session], prober: Prober, server: ProbeServer, vector: bytes
) -> None:
    prober.advance()  # it answers as it should at first
    with queue(factory) as (session, batch):
        query_id = add_query(session, batch, "one").id
    server.odd = b'{"data": [{"embedding": ' + vector + b"}]}"

    prober.advance()

    assert kept(factory) == {query_id: None}


def test_a_prompt_that_fails_alone_keeps_no_other_from_its_probe(
    factory: sessionmaker[Session], prober: Prober, server: ProbeServer
) -> None:
    with queue(factory) as (session, batch):
        good, bad = add_query(session, batch, "one").id, add_query(session, batch, "it breaks").id

    prober.advance()

    assert kept(factory) == {good: [3.0, 1.0]}
    with factory() as session:
        assert list(probes.wanted(session, 10)) == [bad]  # it may yet be read
    assert prober.advance()
    assert kept(factory) == {good: [3.0, 1.0], bad: None}
    assert prober.is_answering
    assert not prober.advance()


def test_a_prober_that_is_slower_than_the_workers_reads_further_ahead(
    factory: sessionmaker[Session], prober: Prober, server: ProbeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing_ahead, "AT_ONCE", 2)
    with queue(factory) as (session, batch):
        ids = [add_query(session, batch, f"{i}").id for i in range(9)]
    with queue(factory, "small") as (session, batch):
        small = [add_query(session, batch, f"small {i}").id for i in range(3)]
    monkeypatch.setattr(probes, "late", lambda _session, query_ids: {ACME: len(query_ids)})

    prober.advance()

    assert sorted(kept(factory)) == [ids[0], small[0]]
    prober.advance()
    assert sorted(kept(factory)) == [ids[0], *ids[4:6], small[0]]  # two were late, and as many may be meanwhile
    with factory() as session:
        assert set(small[1:]) < set(probes.wanted(session, 16, {ACME: 6}))  # nobody else's queue is skipped
        assert ids[1] in probes.wanted(session, 16, {ACME: 50})  # nor one that has no more
    monkeypatch.setattr(probes, "late", lambda _session, _query_ids: {})
    while prober.advance():
        pass
    assert sorted(kept(factory)) == [*ids, *small]


def test_what_had_its_turn_while_it_was_read_was_late(factory: sessionmaker[Session]) -> None:
    with queue(factory) as (session, batch):
        states = (QueryState.QUEUED, QueryState.RUNNING, QueryState.CANCELLED)
        ids = [add_query(session, batch, state=state).id for state in states]

        read = {query_id: probes.Unread(group=ACME, text="") for query_id in ids}
        assert probes.late(session, read) == {ACME: 1}


def test_a_round_of_long_prompts_is_a_short_one(factory: sessionmaker[Session]) -> None:
    with queue(factory) as (session, batch):
        for _ in range(5):
            add_query(session, batch, "x" * 30_000)

        assert len(probes.wanted(session, 16)) == probes.ROUND_CHARACTERS // probes.CHARACTERS_MAX


def test_predictors_see_the_probe_of_each_query_they_plan(factory: sessionmaker[Session]) -> None:
    with queue(factory) as (session, batch):
        seen, unseen = add_query(session, batch), add_query(session, batch)
        probes.keep(session, VIEW, {seen.id: [0.5, -2.0]})

        drafts = draft_plans(session, [seen, unseen], FixedPriors(), SETTINGS, NOW)

    assert drafts[0].query.probe == Probe(view=VIEW, vector=probes.packed([0.5, -2.0]))
    assert drafts[1].query.probe is None


def test_probes_of_old_settled_queries_are_forgotten_and_no_others(
    factory: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "KEPT", 2)
    with queue(factory) as (session, batch):
        states = [QueryState.ANSWERED, QueryState.PARKED, QueryState.FAILED, QueryState.ANSWERED, QueryState.QUEUED]
        ids = [add_query(session, batch, state=state).id for state in states]
        probes.keep(session, VIEW, dict.fromkeys(ids, (1.0,)))

        assert probes.forget(session) == 2

    assert list(kept(factory)) == [ids[1], ids[3], ids[4]]


def test_a_query_that_is_gone_meanwhile_keeps_nobody_elses_probe_back(factory: sessionmaker[Session]) -> None:
    with queue(factory) as (session, batch):
        query_id = add_query(session, batch).id
        probes.keep(session, VIEW, {query_id: [1.0]})
        probes.keep(session, VIEW, {query_id: [2.0], 999_999: [3.0]})

    assert kept(factory) == {query_id: [1.0]}


def test_of_a_long_prompt_the_end_is_read(factory: sessionmaker[Session]) -> None:
    with queue(factory) as (session, batch):
        query_id = add_query(session, batch, "x" * 30_000 + "the question").id

    with factory() as session:
        text = probes.wanted(session, 1)[query_id].text
    assert len(text) == probes.CHARACTERS_MAX
    assert text.endswith("the question")


def test_without_a_probe_server_nothing_runs_beside_the_daemon(factory: sessionmaker[Session]) -> None:
    services = Services(settings=SETTINGS, sessions=factory, clock=lambda: NOW)
    before = threading.active_count()

    prober = probing_ahead.make_prober(services)
    with probing_ahead.probing(prober):
        assert prober is None
        assert threading.active_count() == before


def test_beside_the_daemon_what_waits_is_probed(tmp_path: Path, server: ProbeServer) -> None:
    with new_sessions(f"sqlite:///{tmp_path / 'allotd.db'}") as factory:  # threads do not share one in memory
        check_probing_beside(factory, server)


def check_probing_beside(factory: sessionmaker[Session], server: ProbeServer) -> None:
    settings = SETTINGS.model_copy(update={"probe_url": server.url})
    services = Services(settings=settings, sessions=factory, clock=lambda: NOW)
    with queue(factory) as (session, batch):
        for i in range(probing_ahead.AT_ONCE + 1):
            add_query(session, batch, f"{i}")

    with probing_ahead.probing(probing_ahead.make_prober(services)):
        deadline = time.monotonic() + 10
        while len(kept(factory)) <= probing_ahead.AT_ONCE and time.monotonic() < deadline:
            time.sleep(0.05)

    assert len(kept(factory)) == probing_ahead.AT_ONCE + 1
