"""How a challenger is fitted to the ledger and judged against the predictor in use; run as a process of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from sqlalchemy.orm import Session

from scheduler import predictor_files, predictors
from scheduler.core import judging
from scheduler.core.judging import Judged
from scheduler.database import reading
from scheduler.errors import SchedulerError
from scheduler.examples import is_held_out, read_examples
from scheduler.learners import LEARNERS
from scheduler.learning import Example, Learned, plain_priors
from scheduler.logs import configure_logging
from scheduler.prediction import Predictor
from scheduler.priors import PLAIN
from scheduler.settings import Settings
from scheduler.types import Arm
from scheduler.wiring import Services, make_services

HELD_OUT_MIN = 40
"""Held-out queries that a verdict needs; of fewer, a bootstrap interval says nothing."""
NICENESS = 10
LIBRARIES = ("numpy", "scikit-learn", "skops")
"""What a predictor's file depends on; a card names their versions."""

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Whether a challenger is better than what is in use, why, and what its card says."""

    is_better: bool
    because: str
    card: dict[str, Any]
    learned: Learned | None = None


def retune(services: Services, version: str) -> Verdict:
    """Fit the challenger that was asked for, judge it, and promote it or keep it out."""
    with reading(services.sessions) as session:
        examples = read_examples(session)
        opponent = _opponent(session)
    verdict = judge(examples, opponent, version, examples_min=services.settings.retune_examples_min)
    file = None
    if verdict.learned is not None:
        file = predictor_files.save(services.settings.predictors_dir, version, verdict.learned.content())
    with services.sessions.begin() as session:
        predictors.conclude(
            session,
            version,
            is_better=verdict.is_better,
            because=verdict.because,
            card=verdict.card,
            now=services.clock(),
            file=file,
            lessons=verdict.learned.lessons() if verdict.learned is not None else None,
        )
    log.info("challenger_judged", version=version, promoted=verdict.is_better, because=verdict.because)
    return verdict


def judge(examples: Sequence[Example], opponent: Predictor | None, version: str, *, examples_min: int) -> Verdict:
    """Fit on some of the examples, and compare on the others with the opponent, or with plain priors where it is None.

    It is better only where the whole 95% interval of what it gains is.
    """
    train = [example for example in examples if not is_held_out(example.query.id)]
    held_out = [example for example in examples if is_held_out(example.query.id)]
    card: dict[str, Any] = {
        "examples": len(examples),
        "window": _window(examples),
        "train": len(train),
        "held_out": len(held_out),
    }
    if len(examples) < examples_min:
        because = f"only {len(examples)} settled queries have known correctness; {examples_min} are needed"
        return Verdict(is_better=False, because=because, card=card)
    if len(held_out) < HELD_OUT_MIN:
        because = f"only {len(held_out)} held-out queries could judge it; {HELD_OUT_MIN} are needed"
        return Verdict(is_better=False, because=because, card=card)
    rival = opponent if opponent is not None else plain_priors(train)
    before = beliefs_of(rival, held_out)
    best: Verdict | None = None
    for learner in LEARNERS:
        learned = learner.fit(train, version)
        verdict = _compared(learned, beliefs_of(learned, held_out), rival.version, before, card)
        if best is None or verdict.card["log_loss_per_sample"] < best.card["log_loss_per_sample"]:
            best = verdict
    assert best is not None, "there is a learner"
    return best


def beliefs_of(predictor: Predictor, examples: Sequence[Example]) -> Judged:
    """What a predictor believes of examples, beside what they showed."""
    queries = [example.query for example in examples]
    believed = predictor.predict(queries, [Arm(model=query.model, strategy="auto") for query in queries])
    return Judged(
        alpha=np.array([one.alpha for one in believed]),
        beta=np.array([one.beta for one in believed]),
        right=np.array([example.right for example in examples]),
        judged=np.array([example.judged for example in examples]),
    )


def _opponent(session: Session) -> Predictor | None:
    """The predictor in use; None where plain priors are."""
    row = predictors.champion(session)
    if row is None or row.path is None or row.sha256 is None:
        return None
    try:
        return predictor_files.load(Path(row.path), row.sha256)
    except SchedulerError as error:
        log.warning("champion_unusable", version=row.version, because=error.message)
        return None


def _compared(learned: Learned, beliefs: Judged, rival: str, before: Judged, card: dict[str, Any]) -> Verdict:
    gain = judging.gain_over(before, beliefs)
    is_better = gain.low > 0
    against = "plain priors" if rival == PLAIN else rival
    figures = (
        f"its log loss per query is {gain.mean:+.3f} better than that of {against} on {len(beliefs)} held-out queries "
        f"(95% interval {gain.low:+.3f} to {gain.high:+.3f})"
    )
    return Verdict(
        is_better=is_better,
        because=f"better: {figures}" if is_better else f"not surely better: {figures}",
        card={
            **card,
            "kind": learned.kind,
            "about": dict(learned.about()),
            "versions": {name: version_of(name) for name in LIBRARIES},
            "against": rival,
            "gain": asdict(gain),
            "log_loss_per_sample": judging.loss_per_sample(beliefs),
            "log_loss_per_sample_before": judging.loss_per_sample(before),
            "brier": judging.brier(beliefs),
            "brier_before": judging.brier(before),
            "reliability": [asdict(one) for one in judging.reliability(beliefs)],
        },
        learned=learned,
    )


def _window(examples: Sequence[Example]) -> list[str] | None:
    """When the first and the last of them ended."""
    ended = [example.settled_at for example in examples if example.settled_at is not None]
    return [min(ended).isoformat(), max(ended).isoformat()] if ended else None


def main() -> None:
    """Train the version named on the command line, and leave the processors to whoever has work to do."""
    with suppress(OSError):
        os.nice(NICENESS)
    settings = Settings.from_env()
    configure_logging(settings)
    retune(make_services(settings), sys.argv[1])


if __name__ == "__main__":
    main()
