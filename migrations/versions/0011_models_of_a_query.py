"""The models that may answer a query, and whether another is asked where a plan finds no accepted answer."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """To this revision."""
    op.add_column("queries", sa.Column("models_json", sa.Text(), nullable=True))
    op.add_column("plans", sa.Column("escalates", sa.Boolean(), nullable=False, server_default=sa.false()))


def downgrade() -> None:
    """Back to the one before."""
    op.drop_column("plans", "escalates")
    op.drop_column("queries", "models_json")
