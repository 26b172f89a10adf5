"""Whether the predictor in use still does what its card says, on what it has planned since."""

from __future__ import annotations

from typing import Any

import numpy as np
from sqlalchemy.orm import Session

from models.tables import PredictorRow
from scheduler.core.judging import Judged, loss_per_sample
from scheduler.examples import read_examples

DRIFT_ROWS, DRIFT_MIN = 500, 100
DRIFT_MARGIN = 0.05
"""How much worse (in nats per sample) than on its card a predictor must do on what came since to be called drifted."""


def drift(session: Session, row: PredictorRow, card: dict[str, Any]) -> str | None:
    """Why the predictor in use is to be fitted again before its time, where it does worse than its card says."""
    told = card.get("log_loss_per_sample")
    if told is None:
        return None
    recent = [one for one in read_examples(session, DRIFT_ROWS) if one.believed.version == row.version]
    if len(recent) < DRIFT_MIN:
        return None
    found = loss_per_sample(
        Judged(
            alpha=np.array([one.believed.alpha for one in recent]),
            beta=np.array([one.believed.beta for one in recent]),
            right=np.array([one.right for one in recent]),
            judged=np.array([one.judged for one in recent]),
        )
    )
    if found <= told + DRIFT_MARGIN:
        return None
    return (
        f"drift: {row.version} has a log loss of {found:.3f} on its last {len(recent)} queries, {told:.3f} on its card"
    )
