"""What a wave was expected to cost beside its samples."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """To this revision."""
    # Plans made before this count the prompt with each sample.
    op.add_column("plans", sa.Column("prompt_nanousd", sa.Double(), nullable=False, server_default=sa.text("0")))


def downgrade() -> None:
    """Back to the one before."""
    op.drop_column("plans", "prompt_nanousd")
