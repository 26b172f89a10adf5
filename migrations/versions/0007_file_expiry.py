"""How long output files are kept, and which files are due to be forgotten."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """To this revision."""
    op.add_column("batches", sa.Column("output_expires_after_s", sa.BigInteger(), nullable=True))
    op.create_index("ix_files_expires_at", "files", ["expires_at"], unique=False)


def downgrade() -> None:
    """Back to the one before."""
    op.drop_index("ix_files_expires_at", table_name="files")
    op.drop_column("batches", "output_expires_after_s")
