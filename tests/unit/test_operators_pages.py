"""What operators are given fits what there is: rules name metrics that exist, every kind of alert is explained."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client.core import Metric

from scheduler.metrics import DatabaseCollector
from scheduler.settings import Settings
from scheduler.types import AlertKind
from scheduler.wiring import Services
from tests.factories import NOW, new_sessions

OPS = Path(__file__).parents[2] / "ops"


def exported() -> set[str]:
    """The names of the series that a scrape of an empty database gives."""
    with new_sessions() as sessions:
        collector = DatabaseCollector(Services(settings=Settings(), sessions=sessions, clock=lambda: NOW))
        return {name for family in collector.collect() for name in series(family)}


def series(family: Metric) -> set[str]:
    return {f"{family.name}_total" if family.type == "counter" else family.name}


def test_every_metric_that_a_rule_asks_for_is_exported() -> None:
    expressions = re.findall(r"expr: (.*)", (OPS / "prometheus" / "allotd.rules.yml").read_text())

    asked = {name for expression in expressions for name in re.findall(r"allotd_\w+", expression)}

    assert asked
    assert asked <= exported()


def test_every_kind_of_alert_is_explained() -> None:
    explained = re.findall(r"^\| `(\w+)` \|", (OPS / "alerts.md").read_text(), flags=re.MULTILINE)

    assert set(explained) == set(AlertKind)
