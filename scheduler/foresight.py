"""What the daemon would believe of queries now, for processes that only ask."""

from __future__ import annotations

from threading import Lock

from sqlalchemy.orm import Session

from scheduler import predictors
from scheduler.champion import Champion
from scheduler.prediction import Predictor
from scheduler.priors import PLAIN


class Foresight:
    """Follows the promoted predictor and the ledger as the daemon does, whenever it is asked. Threads may share it."""

    def __init__(self) -> None:
        self._champion = Champion()
        self._lock = Lock()

    def predictor(self, session: Session) -> Predictor:
        """The promoted predictor, or plain priors as they stand."""
        with self._lock:
            self._champion.look(session)  # whether its file can be used is for the daemon to record
            while self._champion.plain.read_on(session):
                pass
            row = predictors.champion(session)
            if row is not None and row.unusable_because is not None:
                return self._champion.plain.frozen(PLAIN)
            return self._champion.snapshot()
