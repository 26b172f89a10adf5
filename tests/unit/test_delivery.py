"""Alerts reach webhooks signed and at least once, are tried again later and later, and are given up visibly."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker
from standardwebhooks import Webhook

from models.tables import Delivery
from scheduler.alerts import raise_alert
from scheduler.courier import deliver_due
from scheduler.delivery import backoff_s
from scheduler.settings import Settings
from scheduler.states import DeliveryState
from scheduler.types import AlertKind
from scheduler.webhooks import NewWebhook, add_webhook, remove_webhook
from scheduler.wiring import Services
from tests.factories import NOW, new_sessions


@dataclass
class Receiver:
    """A webhook's server: answers with these statuses in turn, the last one for good, and remembers what it got."""

    statuses: list[int] = field(default_factory=lambda: [204])
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    silent: threading.Event = field(default_factory=threading.Event)
    """Set, it does not answer before the test's end."""
    ended: threading.Event = field(default_factory=threading.Event)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def answer(self) -> int:
        if self.silent.is_set():
            self.ended.wait(10)
        return self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            made.got.append((dict(self.headers.items()), body))
            self.send_response(made.answer())
            self.send_header("Location", made.url)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            return None

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        made.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.ended.set()
        server.shutdown()
        thread.join()


@dataclass
class Clock:
    now: datetime = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def sessions() -> Iterator[sessionmaker[Session]]:
    with new_sessions() as factory:
        yield factory


@pytest.fixture
def clock() -> Clock:
    return Clock()


def services(sessions: sessionmaker[Session], clock: Clock, **settings: Any) -> Services:
    chosen = Settings(**({"webhooks_private": True, "webhook_timeout_s": 5.0, "webhook_tries": 3} | settings))
    return Services(settings=chosen, sessions=sessions, clock=clock)


def hook(sessions: sessionmaker[Session], url: str, *kinds: AlertKind) -> NewWebhook:
    with sessions.begin() as session:
        return add_webhook(session, url, kinds, NOW)


def alert(sessions: sessionmaker[Session], kind: AlertKind = AlertKind.LEDGER_UNBALANCED, about: str = "x") -> None:
    with sessions.begin() as session:
        assert raise_alert(session, kind, about, message="It is off by 1.", now=NOW, details={"by": 1})


def delivery(sessions: sessionmaker[Session]) -> Delivery:
    with sessions() as session:
        return session.scalars(select(Delivery)).one()


def test_an_alert_arrives_once_and_its_signature_verifies(
    sessions: sessionmaker[Session], clock: Clock, receiver: Receiver
) -> None:
    made = hook(sessions, receiver.url)
    alert(sessions)

    counts = [deliver_due(services(sessions, clock)) for _ in range(2)]

    assert counts == [1, 0]
    [(headers, body)] = receiver.got
    told = Webhook(made.secret).verify(body, headers)
    assert (told["type"], told["data"]["details"]) == ("allotd.ledger_unbalanced", {"by": 1})
    assert headers["Webhook-Id"] == told["data"]["id"]
    assert delivery(sessions).state == DeliveryState.DELIVERED


def test_a_failed_delivery_is_tried_again_under_the_same_id_when_its_time_comes(
    sessions: sessionmaker[Session], clock: Clock, receiver: Receiver
) -> None:
    receiver.statuses = [500, 200]
    hook(sessions, receiver.url)
    alert(sessions)

    deliver_due(services(sessions, clock))
    too_early = deliver_due(services(sessions, clock))
    clock.now += timedelta(seconds=backoff_s(1))
    deliver_due(services(sessions, clock))

    assert too_early == 0
    assert len({headers["Webhook-Id"] for headers, _ in receiver.got}) == 1
    done = delivery(sessions)
    assert (done.state, done.tries, done.last_problem) == (DeliveryState.DELIVERED, 2, None)


def test_after_its_last_try_a_delivery_is_dead_and_says_why(
    sessions: sessionmaker[Session], clock: Clock, receiver: Receiver
) -> None:
    receiver.statuses = [503]
    hook(sessions, receiver.url)
    alert(sessions)

    for _ in range(5):
        deliver_due(services(sessions, clock))
        clock.now += timedelta(days=1)

    done = delivery(sessions)
    assert (done.state, done.tries, done.last_problem) == (DeliveryState.DEAD, 3, "It answered 503.")
    assert len(receiver.got) == 3


def test_waits_grow_and_are_bounded() -> None:
    waits = [backoff_s(tries) for tries in range(1, 200)]

    assert waits == sorted(waits)
    assert (waits[0], waits[-1]) == (5.0, 6 * 3600.0)


def test_a_receiver_that_is_gone_is_not_asked_again(
    sessions: sessionmaker[Session], clock: Clock, receiver: Receiver
) -> None:
    receiver.statuses = [410]
    hook(sessions, receiver.url)
    alert(sessions)

    deliver_due(services(sessions, clock))

    assert delivery(sessions).state == DeliveryState.DEAD


def test_a_redirect_is_not_followed(sessions: sessionmaker[Session], clock: Clock, receiver: Receiver) -> None:
    receiver.statuses = [307]
    hook(sessions, receiver.url)
    alert(sessions)

    deliver_due(services(sessions, clock))

    assert len(receiver.got) == 1
    assert "redirects are not followed" in str(delivery(sessions).last_problem)


def test_a_receiver_that_never_answers_is_left_in_time_and_holds_up_no_other(
    sessions: sessionmaker[Session], clock: Clock, receiver: Receiver
) -> None:
    receiver.silent.set()
    hook(sessions, receiver.url)
    hook(sessions, "http://127.0.0.1:1/")
    alert(sessions)

    deliver_due(services(sessions, clock, webhook_timeout_s=1.0))

    with sessions() as session:
        problems = session.scalars(select(Delivery.last_problem).order_by(Delivery.id)).all()
    assert problems[0] == "It did not answer within 1 s."
    assert str(problems[1]).startswith("It could not be reached")


def test_a_private_address_is_refused_when_sending_too(
    sessions: sessionmaker[Session], clock: Clock, receiver: Receiver
) -> None:
    hook(sessions, receiver.url)
    alert(sessions)

    deliver_due(services(sessions, clock, webhooks_private=False))

    assert receiver.got == []
    assert "no public address" in str(delivery(sessions).last_problem)


def test_a_name_is_looked_up_once_and_what_was_checked_is_connected_to(
    sessions: sessionmaker[Session], clock: Clock, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = socket.getaddrinfo, []

    def lying(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        if host != "hooks.example":
            return real(host, port, *args, **kwargs)
        asked.append(host)
        address = "127.0.0.1" if len(asked) == 1 else "127.0.0.2"  # another one from the second time on
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", lying)
    hook(sessions, f"http://hooks.example:{receiver.port}/hook")
    alert(sessions)

    deliver_due(services(sessions, clock))

    [(headers, _)] = receiver.got
    assert headers["Host"] == f"hooks.example:{receiver.port}"
    assert asked == ["hooks.example"]


def test_a_webhook_gets_the_kinds_it_asked_for(sessions: sessionmaker[Session]) -> None:
    hook(sessions, "http://8.8.8.8/", AlertKind.CAP_SOFT)

    alert(sessions, AlertKind.LEDGER_UNBALANCED)
    alert(sessions, AlertKind.CAP_SOFT)

    with sessions() as session:
        assert len(session.scalars(select(Delivery)).all()) == 1


def test_an_alert_that_is_undone_with_its_cause_is_never_sent(
    sessions: sessionmaker[Session], clock: Clock, receiver: Receiver
) -> None:
    hook(sessions, receiver.url)

    with sessions() as session:
        raise_alert(session, AlertKind.LEDGER_UNBALANCED, "x", message="It is off.", now=NOW)
        session.rollback()

    assert deliver_due(services(sessions, clock)) == 0


def test_what_is_on_its_way_to_a_removed_webhook_is_given_up(
    sessions: sessionmaker[Session], clock: Clock, receiver: Receiver
) -> None:
    made = hook(sessions, receiver.url)
    alert(sessions)

    with sessions.begin() as session:
        remove_webhook(session, made.row.id, NOW)

    assert deliver_due(services(sessions, clock)) == 0
    assert delivery(sessions).state == DeliveryState.DEAD


def test_a_body_is_json_of_the_recommended_shape(
    sessions: sessionmaker[Session], clock: Clock, receiver: Receiver
) -> None:
    hook(sessions, receiver.url)
    alert(sessions)

    deliver_due(services(sessions, clock))

    told = json.loads(receiver.got[0][1])
    assert set(told) == {"type", "timestamp", "data"}
    assert told["timestamp"] == "2026-03-14T15:09:26Z"
