"""What a small model makes of queries' prompts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """To this revision."""
    op.create_table(
        "probes",
        sa.Column("query_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("view", sa.String(), nullable=False),
        sa.Column("vector", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(["query_id"], ["queries.id"], name="fk_probes_query_id_queries", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("query_id", name="pk_probes"),
    )


def downgrade() -> None:
    """Back to the one before."""
    op.drop_table("probes")
