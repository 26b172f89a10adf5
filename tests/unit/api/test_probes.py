"""What watches this process: probes say what is missing, metrics have the figures, logs have no secrets."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from fastapi.testclient import TestClient

from models.tables import Tenant
from scheduler.api.app import create_app
from scheduler.logs import HIDDEN, configure_logging, without_secrets
from scheduler.settings import Settings
from scheduler.wiring import Services
from tests.factories import NOW, add_batch, add_cap, add_query, add_tenant, add_worker
from tests.unit.api.conftest import ADMIN


@pytest.fixture
def own_api(services: Services) -> Iterator[TestClient]:
    """An application that nobody has counted requests on."""
    with TestClient(create_app(services), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def logging_restored() -> Iterator[None]:
    """Logging as it was, afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


def test_a_live_process_says_so_without_a_key(api: TestClient) -> None:
    assert api.get("/healthz").json() == {"status": "ok"}


def test_readiness_names_what_is_missing(api: TestClient) -> None:
    reply = api.get("/readyz")

    checks = reply.json()["checks"]
    assert (reply.status_code, checks["database"]) == (503, "ok")
    assert "allotd db upgrade" in checks["migrations"]
    assert (checks["broker"], checks["workers"]) == ("the broker cannot be reached", "no worker is alive")


def test_a_worker_that_beats_is_seen(api: TestClient, services: Services) -> None:
    with services.sessions.begin() as session:
        add_worker(session)

    assert api.get("/readyz").json()["checks"]["workers"] == "ok"


def test_metrics_are_for_admins_and_for_this_machine(services: Services, auth: dict[str, str]) -> None:
    app = create_app(services)

    with TestClient(app, client=("203.0.113.9", 1)) as far, TestClient(app, client=("127.0.0.1", 1)) as near:
        statuses = [far.get("/metrics"), far.get("/metrics", headers=auth), far.get("/metrics", headers=ADMIN)]

        assert [reply.status_code for reply in statuses] == [401, 403, 200]
        assert near.get("/metrics").status_code == 200


def test_metrics_tell_whether_the_books_balanced_when_last_looked_at(own_api: TestClient, services: Services) -> None:
    before = own_api.get("/metrics", headers=ADMIN).text
    own_api.post("/v1/ledger/verify", headers=ADMIN)
    balanced = own_api.get("/metrics", headers=ADMIN).text
    with services.sessions.begin() as session:
        session.query(Tenant).update({Tenant.held_nanousd: 5})

    verdict = own_api.post("/v1/ledger/verify", headers=ADMIN).json()

    after = own_api.get("/metrics", headers=ADMIN).text
    assert "allotd_ledger_balanced" not in before
    assert "allotd_ledger_balanced 1.0" in balanced
    assert f"allotd_ledger_verified_timestamp_seconds {NOW.timestamp():.9e}" in balanced
    assert verdict["shown"][0] == {
        "table": "tenants",
        "id": "tenant_first",
        "what": "held nano-dollars",
        "expected": 0,
        "found": 5,
    }
    assert "allotd_ledger_balanced 0.0" in after
    assert "allotd_ledger_discrepancies 1.0" in after


def test_only_admins_look_through_the_books(api: TestClient, auth: dict[str, str]) -> None:
    assert api.post("/v1/ledger/verify", headers=auth).status_code == 403
    assert api.get("/v1/ledger/audits", headers=auth).status_code == 403


def test_metrics_tell_what_waits_what_is_left_and_who_works(own_api: TestClient, services: Services) -> None:
    with services.sessions.begin() as session:
        tenant = add_tenant(session, "acme")
        add_cap(session, tenant, 2_500_000_000)
        add_query(session, add_batch(session, tenant))
        add_worker(session)
    own_api.get("/healthz")

    text = own_api.get("/metrics", headers=ADMIN).text

    assert 'allotd_queries_open{state="queued"} 1.0' in text
    assert 'allotd_batches_open{state="in_progress"} 1.0' in text
    assert 'allotd_cap_left_usd{model="",period="total",tenant="acme"} 2.5' in text
    assert 'allotd_spent_usd_total{tenant="acme"} 0.0' in text
    assert 'allotd_workers{state="alive"} 1.0' in text
    assert 'allotd_http_requests_total{method="GET",route="/healthz",status="200"} 1.0' in text


def test_unknown_addresses_make_no_new_series(own_api: TestClient) -> None:
    for number in range(20):
        own_api.request(f"METHOD{number}", f"/nothing/{number}")

    text = own_api.get("/metrics", headers=ADMIN).text

    assert 'allotd_http_requests_total{method="",route="unmatched",status="404"} 20.0' in text


def test_metrics_without_a_database_say_that_it_is_away(services: Services, api: TestClient) -> None:
    with services.sessions.begin() as session:
        session.connection().exec_driver_sql("DROP TABLE workers")

    reply = api.get("/metrics", headers=ADMIN)

    assert reply.status_code == 200
    assert "allotd_database_up 0.0" in reply.text


@pytest.mark.parametrize(
    ("told", "secret"),
    [
        ("key sk-allotd-abcdefghijklmnop was sent", "abcdefghijklmnop"),
        ("Authorization: Bearer abc.def", "abc.def"),
        ("postgresql+psycopg://allotd:hunter2@db/allotd", "hunter2"),
        ({"headers": {"Authorization": "abc"}}, "abc"),
        ([{"api_key": "abc"}], "abc"),
    ],
)
def test_a_secret_is_hidden_wherever_it_stands(told: Any, secret: str) -> None:
    shown = str(without_secrets(told))

    assert secret not in shown
    assert HIDDEN in shown


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.usefixtures("logging_restored")
def test_our_logs_and_libraries_logs_hide_secrets_also_in_tracebacks(
    capsys: pytest.CaptureFixture[str], log_format: str
) -> None:
    configure_logging(Settings(log_format=log_format, log_level="DEBUG"))
    key = "sk-allotd-abcdefghijklmnop"

    logging.getLogger("library").warning("sent %s", key)
    try:
        raise ValueError(key)
    except ValueError:
        structlog.get_logger().exception("went_wrong", admin_key="hunter2", note=f"Bearer {key}")

    printed = capsys.readouterr().err
    assert "went_wrong" in printed
    assert "ValueError" in printed
    assert "abcdefghijklmnop" not in printed
    assert "hunter2" not in printed


@pytest.mark.usefixtures("logging_restored")
def test_a_json_log_is_one_object_per_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(Settings(log_format="json"))

    structlog.get_logger().info("attempt_settled", attempt=7, cost_nanousd=320)

    [line] = capsys.readouterr().err.splitlines()
    entry = json.loads(line)
    assert (entry["event"], entry["attempt"], entry["cost_nanousd"], entry["level"]) == (
        "attempt_settled",
        7,
        320,
        "info",
    )
