"""What Alembic runs: the migrations on the connection it was given, or on `-x url=...` while drafting a new one."""

from __future__ import annotations

from typing import Any, Literal

import sqlalchemy as sa
from alembic import context
from alembic.autogenerate.api import AutogenContext

from migrations.run import OPTIONS, connected
from models.tables import Table
from models.tables.base import UtcDateTime


def render_item(kind: str, item: Any, _context: AutogenContext) -> str | Literal[False]:
    """Migrations are frozen, so they name SQLAlchemy's types and not ours, which may change."""
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(item, UtcDateTime) else False


def migrate(connection: sa.Connection) -> None:
    """Run what was asked for; the transaction belongs to whoever opened the connection."""
    context.configure(connection=connection, target_metadata=Table.metadata, render_item=render_item, **OPTIONS)
    context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    migrate(given)
else:
    with connected(context.get_x_argument(as_dictionary=True)["url"]) as opened:
        migrate(opened)
