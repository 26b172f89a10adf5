"""What was learned of samples, beside the predictor that learned it, and the mean length a plan expected."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """To this revision."""
    op.add_column("predictors", sa.Column("lessons_json", sa.Text(), nullable=True))
    op.add_column("plans", sa.Column("tokens_mean", sa.Double(), nullable=True))


def downgrade() -> None:
    """Back to the one before."""
    op.drop_column("plans", "tokens_mean")
    op.drop_column("predictors", "lessons_json")
