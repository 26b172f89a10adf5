"""Predictors as files: written without pickle, checked against their checksum, and read with only the types we name."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skops.io import dumps, loads

from models.learned.card import Card
from models.learned.predictor import DifficultyPredictor
from scheduler.errors import SchedulerError

TRUSTED = (
    "models.learned.evidence.BetaScale",
    "models.learned.evidence.LeaderRight",
    "models.learned.evidence.NextRight",
    "models.learned.features.Featuriser",
    "models.learned.lengths.LengthRegressor",
    "models.learned.predictor.DifficultyPredictor",
    "models.learned.rates.FallbackRates",
    "models.learned.rates.RateRegressor",
)
"""The types of a predictor's file beyond those of numpy and scikit-learn that skops trusts by itself."""

CARD_SUFFIX = ".card.json"


class PredictorUnusable(SchedulerError):
    """The predictor's file cannot be used; train a new one with `allotd predictor train`, or roll back."""

    code = "predictor_unusable"


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """A predictor with its card and the checksum of its file."""

    predictor: DifficultyPredictor
    card: Card
    sha256: str


def save(predictor: DifficultyPredictor, card: Card, path: Path) -> str:
    """Write the predictor and, beside it, its card; returns the file's sha256. A crash leaves no half of either."""
    raw = dumps(predictor)
    digest = hashlib.sha256(raw).hexdigest()
    _replace(path, raw)
    _replace(card_path(path), json.dumps({**card.as_json(), "sha256": digest}, indent=2).encode())
    return digest


def load(path: Path, sha256: str | None = None) -> Stored:
    """Read a predictor whose file has the checksum of its card (and the given one). Raises PredictorUnusable."""
    try:
        told = json.loads(card_path(path).read_bytes())
        raw = path.read_bytes()
    except (OSError, ValueError) as error:
        problem = f"The predictor {path.name} or its card cannot be read ({error})"
        raise PredictorUnusable(f"{problem}; {WHAT_TO_DO}") from None
    found = hashlib.sha256(raw).hexdigest()
    expected = {told.get("sha256"), *([sha256] if sha256 else [])} if isinstance(told, dict) else {None}
    if expected != {found}:
        raise PredictorUnusable(
            f"The predictor {path.name} is not the file that was trained (its sha256 is {found[:12]}...); {WHAT_TO_DO}",
            sha256=found,
        )
    try:
        return Stored(predictor=from_bytes(raw), card=Card.from_json(told), sha256=found)
    except (KeyError, TypeError, ValueError) as error:
        raise PredictorUnusable(f"The card of the predictor {path.name} is damaged ({error}); {WHAT_TO_DO}") from None


def from_bytes(raw: bytes) -> DifficultyPredictor:
    """A predictor from its file's bytes; nothing in them is run. Raises PredictorUnusable."""
    try:
        found: Any = loads(raw, trusted=list(TRUSTED))
    except Exception as error:  # skops raises what its parts raise: zip, JSON, numpy
        raise PredictorUnusable(f"The predictor's file is damaged ({error}); {WHAT_TO_DO}") from None
    if not isinstance(found, DifficultyPredictor):
        raise PredictorUnusable(f"The file holds a {type(found).__name__}, not a predictor; {WHAT_TO_DO}")
    return found


def card_path(path: Path) -> Path:
    """Where a predictor's card stands."""
    return path.with_name(path.name + CARD_SUFFIX)


WHAT_TO_DO = "train a new one with `allotd predictor train`, or roll back"


def _replace(path: Path, raw: bytes) -> None:
    draft = path.with_name(f"{path.name}.new")
    with draft.open("wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
