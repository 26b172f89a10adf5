"""Which predictor the daemon plans with: the champion where its file is sound, else plain priors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import structlog
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from models.tables import PredictorRow
from scheduler import predictor_files
from scheduler.alerts import raise_alert
from scheduler.errors import SchedulerError
from scheduler.learning import Past, Remembers
from scheduler.prediction import Predictor
from scheduler.predictor_files import PredictorUnusable
from scheduler.priors import PLAIN, PlainPriors
from scheduler.states import PredictorState
from scheduler.types import AlertKind, Arm, Prediction, Query

Load = Callable[[Path, str], Predictor]

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What a look at the champion's file found; `problem` is None where it can be used."""

    version: str
    problem: str | None


class Champion:
    """Predicts with the promoted predictor; falls back on plain priors as soon as that one cannot be used.

    A promotion, a rollback or a change of the file is noticed at the next look, so no restart is needed.
    """

    def __init__(self, load: Load = predictor_files.load) -> None:
        self.plain = PlainPriors()
        self._load = load
        self._promoted: Predictor | None = None
        self._seen: tuple[object, ...] | None = None
        self._failed: Finding | None = None

    @property
    def version(self) -> str:
        """The version that plans made now would name."""
        return self._serving.version

    @property
    def is_learned(self) -> bool:
        """Whether a promoted predictor is in use."""
        return self._promoted is not None

    def predict(self, queries: Sequence[Query], arms: Sequence[Arm]) -> list[Prediction]:
        """What is believed of each query; plain priors where the champion fails at it."""
        serving = self._serving
        try:
            return serving.predict(queries, arms)
        except Exception as error:
            if serving is self.plain:
                raise
            log.exception("prediction_failed", version=serving.version)
            self._promoted = None
            self._failed = Finding(version=serving.version, problem=f"It fails to predict: {error!r}.")
            return self.plain.predict(queries, arms)

    def snapshot(self) -> Predictor:
        """What plans made now would believe, as something that changes no more."""
        return self._promoted if self._promoted is not None else self.plain.frozen(PLAIN)

    def past(self, model: str) -> Past | None:
        """What the promoted predictor remembers of a model's earlier queries; None where it remembers none."""
        return self._promoted.past(model) if isinstance(self._promoted, Remembers) else None

    def look(self, session: Session) -> Finding | None:
        """Follow promotions and the champion's file; returns what is to be recorded where something changed."""
        if self._failed is not None:
            failed, self._failed = self._failed, None
            return failed
        row = session.execute(_CHAMPION).first()
        seen = (row.version, row.path, row.sha256, *_stamp(row.path)) if row is not None else ()
        if seen == self._seen:
            return None
        self._seen = seen
        if row is None:
            self._promoted = None
            return None
        try:
            self._promoted = self._open(row.path, row.sha256)
        except SchedulerError as error:
            self._promoted = None
            return Finding(version=row.version, problem=error.message)
        log.info("predictor_in_use", version=row.version)
        return Finding(version=row.version, problem=None)

    @property
    def _serving(self) -> Predictor:
        return self._promoted if self._promoted is not None else self.plain

    def _open(self, path: str | None, sha256: str | None) -> Predictor:
        if path is None or sha256 is None:
            raise PredictorUnusable("It has no file.")
        return self._load(Path(path), sha256)


def record(session: Session, finding: Finding, now: datetime) -> None:
    """Write down whether the champion can be used, and alert people where it cannot."""
    mine = PredictorRow.version == finding.version
    known = session.scalar(select(PredictorRow.unusable_because).where(mine))
    session.execute(update(PredictorRow).where(mine).values(unusable_because=finding.problem))
    if finding.problem is not None:
        raise_alert(
            session,
            AlertKind.PREDICTOR_UNUSABLE,
            finding.version,
            message=f"The predictor {finding.version} cannot be used, so plans are made with plain priors. "
            f"{finding.problem} Put its file back, or run `allotd predictor rollback` or `allotd predictor train`.",
            now=now,
            period=now.isoformat() if finding.problem != known else None,  # else a reminder, once a day
        )


def _stamp(path: str | None) -> tuple[int, ...]:
    """What changes when a file does, without reading it."""
    try:
        stat = Path(path or "").stat()
    except OSError:
        return ()
    return stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino


_CHAMPION = select(PredictorRow.version, PredictorRow.path, PredictorRow.sha256).where(
    PredictorRow.state == PredictorState.CHAMPION
)
