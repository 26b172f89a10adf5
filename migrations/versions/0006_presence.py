"""What shows that a worker process lives, so that its death is known at once."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """To this revision."""
    op.add_column("workers", sa.Column("presence", sa.String(), nullable=True))


def downgrade() -> None:
    """Back to the one before."""
    op.drop_column("workers", "presence")
