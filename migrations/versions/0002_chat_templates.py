"""What each model's chat template adds to a prompt, so that estimates and holds fit."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

COLUMNS = ("template_tokens", "template_system_tokens")


def upgrade() -> None:
    """To this revision."""
    for name in COLUMNS:
        op.add_column("llms", sa.Column(name, sa.BigInteger(), nullable=True))


def downgrade() -> None:
    """Back to the one before."""
    for name in reversed(COLUMNS):
        op.drop_column("llms", name)
