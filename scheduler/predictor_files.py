"""Where fitted predictors are kept: one skops file each, without pickle, known by its SHA-256."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scheduler.errors import SchedulerError
from scheduler.prediction import Predictor

SUFFIX = ".skops"
TRUSTED = ("models.learned.", "sklearn.", "numpy.", "scipy.")
"""Whose types a file may hold beyond the plain ones. skops builds objects from them and runs nothing else."""


class PredictorUnusable(SchedulerError):
    """The predictor cannot be loaded; train or promote another one."""

    code = "predictor_unusable"


def save(directory: Path, version: str, content: Mapping[str, Any]) -> tuple[Path, str]:
    """Write a predictor, whole or not at all; returns its path and its SHA-256."""
    from skops.io import dumps  # noqa: PLC0415 (it brings scikit-learn, which takes seconds)

    packed: bytes = dumps(dict(content))
    directory.mkdir(parents=True, exist_ok=True)
    path = (directory / f"{version}{SUFFIX}").resolve()
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        file.write(packed)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return path, hashlib.sha256(packed).hexdigest()


def check(path: Path, sha256: str) -> None:
    """Raises PredictorUnusable where a file is missing or changed. Who does not see its folder cannot know: nothing."""
    if path.parent.is_dir():
        _read(path, sha256)


def load(path: Path, sha256: str) -> Predictor:
    """The predictor in a file. Raises PredictorUnusable where it is missing, changed, or not what we write."""
    packed = _read(path, sha256)
    from skops.io import get_untrusted_types, loads  # noqa: PLC0415 (as above)

    from scheduler.learners import restore  # noqa: PLC0415 (as above)

    try:
        untrusted = get_untrusted_types(data=packed)
        strange = [name for name in untrusted if not name.startswith(TRUSTED)]
        if strange:
            raise PredictorUnusable(f"The file {path.name} holds types that are not ours: {', '.join(strange)}.")
        return restore(loads(packed, trusted=untrusted))
    except PredictorUnusable:
        raise
    except Exception as error:  # a file of another version may fail anywhere in skops or scikit-learn
        raise PredictorUnusable(f"The file {path.name} cannot be read: {type(error).__name__}: {error}.") from error


def _read(path: Path, sha256: str) -> bytes:
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise PredictorUnusable(f"The file {path} cannot be read: {error.strerror}.") from error
    found = hashlib.sha256(packed).hexdigest()
    if found != sha256:
        raise PredictorUnusable(
            f"The file {path.name} has changed: its SHA-256 is {found[:12]}..., {sha256[:12]}... was recorded."
        )
    return packed
