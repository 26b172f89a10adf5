"""What plans were expected to reach and cost, the price of each budget, and predictors that cannot be used."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

OF_PLANS = ("cost_nanousd", "gain", "sample_nanousd", "explored")


def upgrade() -> None:
    """To this revision."""
    op.add_column("predictors", sa.Column("unusable_because", sa.Text(), nullable=True))
    # Plans made before this were drawn by nobody's lot, and nothing was expected of them.
    op.add_column("plans", sa.Column("explored", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("plans", sa.Column("sample_nanousd", sa.Double(), nullable=False, server_default=sa.text("0")))
    op.add_column("plans", sa.Column("gain", sa.Double(), nullable=True))
    op.add_column("plans", sa.Column("cost_nanousd", sa.Double(), nullable=True))
    op.create_table(
        "paces",
        sa.Column("scope", sa.String(), nullable=False),
        sa.Column("starts_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("price", sa.Double(), nullable=False),
        sa.Column("windows", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_paces_tenant_id_tenants", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("scope", "starts_at", name="pk_paces"),
    )
    op.create_index("ix_paces_tenant_id", "paces", ["tenant_id"])


def downgrade() -> None:
    """Back to the one before."""
    op.drop_table("paces")
    for name in OF_PLANS:
        op.drop_column("plans", name)
    op.drop_column("predictors", "unusable_because")
