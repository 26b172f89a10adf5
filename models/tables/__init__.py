"""What we remember: every table, so that one import gives Alembic all of them."""

from models.tables.alerts import Alert, Delivery, WebhookRow
from models.tables.base import Table
from models.tables.money import Audit, Correction, Entry, PriceRow
from models.tables.serving import LlmRow, PredictorRow
from models.tables.tenants import ApiKey, Cap, CapPeriod, Pace, Tenant
from models.tables.work import (
    Attempt,
    Batch,
    File,
    FileChunk,
    Label,
    PlanRow,
    ProbeRow,
    QueryRow,
    SampleRow,
    Wave,
    Worker,
)

__all__ = [
    "Alert",
    "ApiKey",
    "Attempt",
    "Audit",
    "Batch",
    "Cap",
    "CapPeriod",
    "Correction",
    "Delivery",
    "Entry",
    "File",
    "FileChunk",
    "Label",
    "LlmRow",
    "Pace",
    "PlanRow",
    "PredictorRow",
    "PriceRow",
    "ProbeRow",
    "QueryRow",
    "SampleRow",
    "Table",
    "Tenant",
    "Wave",
    "WebhookRow",
    "Worker",
]
