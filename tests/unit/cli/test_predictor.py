"""Predictors from the command line, against the real API; here no daemon trains what is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler import predictors
from scheduler.wiring import utc_now
from tests.unit.cli.conftest import Allotd, Server


def conclude(server: Server, version: str, *, is_better: bool, directory: Path = Path("not-seen-from-here")) -> None:
    """What the daemon's training process does at its end."""
    card = {
        "train": 140,
        "held_out": 60,
        "against": "plain-priors-1",
        "gain": {"mean": 0.1, "low": 0.02, "high": 0.2},
        "log_loss_per_sample": 0.5,
        "log_loss_per_sample_before": 0.6,
        "brier": 0.2,
        "brier_before": 0.25,
        "reliability": [{"predicted": 0.3, "right": 0.25, "samples": 80}],
    }
    with server.sessions.begin() as session:
        predictors.conclude(
            session,
            version,
            is_better=is_better,
            because="better: by a little" if is_better else "not surely better: by too little",
            card=card,
            now=utc_now(),
            file=(directory / f"{version}.skops", "0" * 64),
        )


def test_before_anything_was_trained_plans_are_made_with_plain_priors(server: Server, allotd: Allotd) -> None:
    assert "plain priors" in allotd("predictor", "show").out
    assert allotd("predictor", "show", "--json").json is None
    assert "allotd predictor train" in allotd("predictor", "history").out
    refused = allotd("predictor", "rollback")
    assert refused.code == 1
    assert refused.err.count("\n") == 1
    assert "nothing to roll back" in refused.err


def test_a_predictor_is_asked_for_judged_shown_promoted_and_rolled_back(server: Server, allotd: Allotd) -> None:
    asked = allotd("predictor", "train", "--no-wait", "--json").json
    assert (asked["state"], asked["usable"]) == ("challenger", False)
    assert allotd("predictor", "train", "--no-wait", "--json").json["version"] == asked["version"]

    conclude(server, asked["version"], is_better=False)

    shown = allotd("predictor", "show", asked["version"]).out
    assert "kept out, because not surely better" in shown
    assert "judged on 60 others" in shown
    assert "0.25" in shown
    assert asked["version"] in allotd("predictor", "promote", asked["version"]).out
    assert allotd("predictor", "show", "--json").json["because"] == "promoted by an operator"
    assert "in use" in allotd("predictor", "history").out
    assert "plain priors" in allotd("predictor", "rollback").out
    assert allotd("predictor", "show", "--json").json is None


def test_what_has_lost_its_file_is_not_promoted_and_a_rollback_says_that_it_was_passed_over(
    server: Server, allotd: Allotd, tmp_path: Path
) -> None:
    lost = allotd("predictor", "train", "--no-wait", "--json").json["version"]
    assert f"'{lost}' has no file" in allotd("predictor", "promote", lost).err
    conclude(server, lost, is_better=True, directory=tmp_path)
    newer = allotd("predictor", "train", "--no-wait", "--json").json["version"]
    conclude(server, newer, is_better=True)

    refused = allotd("predictor", "promote", lost)
    assert refused.code == 1
    assert "cannot be used. The file" in refused.err
    assert allotd("predictor", "show", "--json").json["version"] == newer
    assert allotd("predictor", "rollback").out == (
        f"Plans are made with plain priors from now on. Passed over, as their files are gone or changed: {lost}.\n"
    )


def test_an_unusable_predictor_is_called_so_only_while_it_is_promoted(server: Server, allotd: Allotd) -> None:
    version = allotd("predictor", "train", "--no-wait", "--json").json["version"]
    conclude(server, version, is_better=True)
    with server.sessions.begin() as session:
        predictors.find_predictor(session, version).unusable_because = "Its file is gone."

    shown = allotd("predictor", "show").out
    assert f"{version}: promoted, because" in shown
    assert "It cannot be used, so plans are made with plain priors. Its file is gone." in shown
    assert "unusable" in allotd("predictor", "history").out
    allotd("predictor", "rollback")
    assert "cannot be used" not in allotd("predictor", "show", version).out
    assert "unusable" not in allotd("predictor", "history").out


def test_a_wait_for_training_that_takes_too_long_ends_with_what_to_do(server: Server, allotd: Allotd) -> None:
    late = allotd("predictor", "train", "--timeout", "1")

    assert late.code == 1
    [waiting] = allotd("predictor", "history", "--json").json
    assert f"allotd predictor show {waiting['version']}" in late.err


def test_an_unknown_version_and_a_tenants_key_are_refused_in_one_line(
    priced: Server, allotd: Allotd, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = allotd("predictor", "promote", "nobody")
    assert unknown.err == "allotd: There is no predictor 'nobody'.\n"

    monkeypatch.setenv("ALLOTD_API_KEY", allotd("key", "create", "acme", "--json").json["key"])
    refused = allotd("predictor", "train")

    assert refused.code == 1
    assert refused.err.count("\n") == 1


def test_the_report_says_who_sets_budgets(priced: Server, allotd: Allotd) -> None:
    assert "Budgets are set by plain-priors-1." in allotd("report").out
    budgets = allotd("report", "--json").json["budgets"]
    assert budgets["prices"] == budgets["calibration"] == []
