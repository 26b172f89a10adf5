"""What can be measured from outside: the state of the database at each scrape, and what this process has done."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from models.tables import Alert, Batch, Delivery, PredictorRow, QueryRow, Tenant, WebhookRow, Worker
from scheduler.audit import last_audit
from scheduler.caps import CapStatus, list_caps
from scheduler.core.pricing import NANOUSD_PER_USD
from scheduler.database import reading
from scheduler.states import BATCH_FINAL, QUERY_OPEN, BatchState, DeliveryState, PredictorState
from scheduler.types import AlertKind
from scheduler.wiring import Services

TENANTS_SHOWN = 200
"""Tenants with series of their own, the oldest; all others are summed as `other`, so that labels stay few."""
OTHER = "other"

REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 600.0)
"""From one look-up to an answer that a client waited ten minutes for."""

log = structlog.get_logger()


class Metrics:
    """One process's registry and the counters it moves itself."""

    def __init__(self, services: Services) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "allotd_http_requests", "Requests answered.", ("route", "method", "status"), registry=self.registry
        )
        self.request_seconds = Histogram(
            "allotd_http_request_duration_seconds",
            "Time from a request's arrival to the end of its answer.",
            ("route", "method"),
            buckets=REQUEST_SECONDS,
            registry=self.registry,
        )
        self.registry.register(DatabaseCollector(services))


class DatabaseCollector(Collector):
    """Reads the present state in a few small statements whenever somebody scrapes."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand: registering must not need a database."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """The families, or only that the database cannot be read."""
        now = self._services.clock()
        alive_since = now - timedelta(seconds=self._services.settings.lease_s)
        try:
            with reading(self._services.sessions) as session:
                families = [
                    _open_queries(session),
                    _open_batches(session),
                    *_money(session, now),
                    _workers(session, alive_since),
                    *_ledger(session),
                    _alerts(session),
                    _deliveries(session),
                    _predictors(session),
                ]
        except SQLAlchemyError as error:
            log.warning("scrape_failed", error=str(error))
            families = []
        yield GaugeMetricFamily("allotd_database_up", "Whether the database could be read.", value=bool(families))
        yield from families


def _open_queries(session: Session) -> Metric:
    family = GaugeMetricFamily("allotd_queries_open", "Queries that have not ended yet.", labels=("state",))
    open_states = sorted(QUERY_OPEN)
    found = dict(
        session.execute(
            select(QueryRow.state, func.count()).where(QueryRow.state.in_(open_states)).group_by(QueryRow.state)
        ).all()
    )
    for state in open_states:
        family.add_metric((state,), found.get(state, 0))
    return family


def _open_batches(session: Session) -> Metric:
    family = GaugeMetricFamily("allotd_batches_open", "Batches that have not ended yet.", labels=("state",))
    open_states = sorted(set(BatchState) - BATCH_FINAL)
    found = dict(
        session.execute(
            select(Batch.state, func.count()).where(Batch.state.in_(open_states)).group_by(Batch.state)
        ).all()
    )
    for state in open_states:
        family.add_metric((state,), found.get(state, 0))
    return family


def _money(session: Session, now: datetime) -> list[Metric]:
    spent = CounterMetricFamily("allotd_spent_usd", "What a tenant has spent, ever.", labels=("tenant",))
    held = GaugeMetricFamily("allotd_held_usd", "What is held for a tenant's running waves.", labels=("tenant",))
    tenants = session.execute(
        select(Tenant.name, Tenant.spent_nanousd, Tenant.held_nanousd).order_by(Tenant.created_at, Tenant.id)
    ).all()
    shown, rest = tenants[:TENANTS_SHOWN], tenants[TENANTS_SHOWN:]
    totals = [(row.name, row.spent_nanousd, row.held_nanousd) for row in shown]
    if rest:
        totals.append((OTHER, sum(row.spent_nanousd for row in rest), sum(row.held_nanousd for row in rest)))
    for name, spent_nanousd, held_nanousd in totals:
        spent.add_metric((name,), spent_nanousd / NANOUSD_PER_USD)
        held.add_metric((name,), held_nanousd / NANOUSD_PER_USD)
    names = {row.name for row in shown}
    return [spent, held, *_caps([cap for cap in list_caps(session, None, now) if cap.tenant_name in names])]


def _caps(caps: list[CapStatus]) -> list[Metric]:
    labels = ("tenant", "period", "model")
    limit = GaugeMetricFamily("allotd_cap_limit_usd", "A tenant's limit per period.", labels=labels)
    left = GaugeMetricFamily("allotd_cap_left_usd", "What a limit leaves in its present period.", labels=labels)
    phantom = GaugeMetricFamily(
        "allotd_cap_phantom_block_usd",
        "What a limit still left when it first refused a query in its present period.",
        labels=labels,
    )
    for cap in caps:
        values = (cap.tenant_name, cap.period.value, cap.model or "")
        limit.add_metric(values, cap.limit_nanousd / NANOUSD_PER_USD)
        left.add_metric(values, cap.left_nanousd / NANOUSD_PER_USD)
        if cap.phantom_block_nanousd is not None:
            phantom.add_metric(values, cap.phantom_block_nanousd / NANOUSD_PER_USD)
    return [limit, left, phantom]


def _workers(session: Session, alive_since: datetime) -> Metric:
    family = GaugeMetricFamily("allotd_workers", "Workers whose heartbeat is fresh.", labels=("state",))
    rows = session.execute(
        select(Worker.quarantined_because.is_not(None), func.count())
        .where(Worker.heartbeat_at > alive_since, Worker.stopped_at.is_(None))
        .group_by(Worker.quarantined_because.is_not(None))
    )
    found = {bool(quarantined): count for quarantined, count in rows}
    for quarantined, state in ((False, "alive"), (True, "quarantined")):
        family.add_metric((state,), found.get(quarantined, 0))
    return family


def _ledger(session: Session) -> list[Metric]:
    """What the newest audit found; nothing before there was one."""
    audit = last_audit(session)
    if audit is None:
        return []
    return [
        GaugeMetricFamily(
            "allotd_ledger_balanced",
            "1 where every balance and every entry added up at the last audit, else 0.",
            value=float(audit.discrepancies == 0),
        ),
        GaugeMetricFamily(
            "allotd_ledger_discrepancies", "Figures that did not add up at the last audit.", value=audit.discrepancies
        ),
        GaugeMetricFamily(
            "allotd_ledger_verified_timestamp_seconds",
            "The instant of the ledger that the last audit looked at.",
            value=audit.began_at.timestamp(),
        ),
    ]


def _alerts(session: Session) -> Metric:
    family = CounterMetricFamily("allotd_alerts", "Alerts raised, ever.", labels=("kind",))
    found = dict(session.execute(select(Alert.kind, func.count()).group_by(Alert.kind)).all())
    for kind in AlertKind:
        family.add_metric((kind.value,), found.get(kind, 0))
    return family


def _deliveries(session: Session) -> Metric:
    family = GaugeMetricFamily(
        "allotd_webhook_deliveries", "Alerts on their way to webhooks, and those given up.", labels=("state",)
    )
    found = dict(
        session.execute(
            select(Delivery.state, func.count())
            .join(WebhookRow, WebhookRow.id == Delivery.webhook_id)
            .where(Delivery.state != DeliveryState.DELIVERED, WebhookRow.removed_at.is_(None))
            .group_by(Delivery.state)
        ).all()
    )
    for state in (DeliveryState.PENDING, DeliveryState.DEAD):
        family.add_metric((state.value,), found.get(state, 0))
    return family


def _predictors(session: Session) -> Metric:
    family = GaugeMetricFamily(
        "allotd_predictor_usable",
        "Whether the promoted predictor can be used; 0 means plain priors.",
        labels=("version",),
    )
    for row in session.scalars(select(PredictorRow).where(PredictorRow.state == PredictorState.CHAMPION)):
        family.add_metric((row.version,), float(row.unusable_because is None))
    return family
