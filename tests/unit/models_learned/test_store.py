"""A predictor's file: what comes back is what was saved, and what was changed is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from skops.io import dump, dumps, get_untrusted_types

from models.learned.card import Card, train
from models.learned.predictor import DifficultyPredictor
from models.learned.store import TRUSTED, PredictorUnusable, card_path, from_bytes, load, save
from tests.unit.models_learned.synthetic import synthetic


@pytest.fixture(scope="module")
def trained() -> tuple[DifficultyPredictor, Card]:
    examples, _ = synthetic(24, seed=1)
    return train(examples, window=("2026-11-01", "2026-11-25"))


def test_a_stored_predictor_predicts_the_same(trained, tmp_path: Path) -> None:
    predictor, card = trained
    examples, _ = synthetic(20, seed=2)

    digest = save(predictor, card, tmp_path / "p.skops")
    stored = load(tmp_path / "p.skops", digest)

    assert stored.card == card
    assert np.array_equal(stored.predictor.beliefs(examples.facts).alpha, predictor.beliefs(examples.facts).alpha)


def test_only_the_types_we_name_are_trusted(trained) -> None:
    assert set(get_untrusted_types(data=dumps(trained[0]))) <= set(TRUSTED)


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_changed_file_is_refused(trained, tmp_path: Path, damage: bytes | None) -> None:
    path = tmp_path / "p.skops"
    save(*trained, path)
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2] if damage is None else damage)

    with pytest.raises(PredictorUnusable, match=r"p\.skops is not the file that was trained"):
        load(path)


def test_a_missing_file_or_card_is_told(trained, tmp_path: Path) -> None:
    path = tmp_path / "p.skops"
    with pytest.raises(PredictorUnusable, match="cannot be read"):
        load(path)
    save(*trained, path)
    card_path(path).write_text("{}")
    with pytest.raises(PredictorUnusable):
        load(path)


def test_a_card_without_scores_is_refused(trained, tmp_path: Path) -> None:
    path = tmp_path / "p.skops"
    save(*trained, path)
    told = json.loads(card_path(path).read_text())
    del told["scores"]
    card_path(path).write_text(json.dumps(told))

    with pytest.raises(PredictorUnusable, match="card"):
        load(path)


def test_bytes_that_are_no_predictor_are_refused(tmp_path: Path) -> None:
    dump({"a": 1}, tmp_path / "x")

    for raw in (b"PK\x03\x04 not a zip", (tmp_path / "x").read_bytes()):
        with pytest.raises(PredictorUnusable):
            from_bytes(raw)
