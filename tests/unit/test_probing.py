"""What is read of a probe's answers, what of a pool is asked at all, and what a cut model keeps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from scheduler.cli import prober
from scheduler.errors import Conflict, InvalidRequest
from scheduler.probing import PromptStatistics, layer_of, statistics_of
from scheduler.simulation.pools import read_pools
from scheduler.simulation.simulate import are_probed
from tests.unit.simulation.pools import judged, lines, pool_line, write_pool
from workers.cut_model import NotCut, cut
from workers.probe_server import READ_TOKENS, cut_copy, tokens_read

PROBE = {
    "model": "small",
    "layer": 2,
    "vector": [0.5],
    "logprob_mean": -1,
    "logprob_std": 0,
    "logprob_min": -1,
    "tokens": 3,
}


@pytest.fixture
def llm(tmp_path: Path) -> Path:
    directory = tmp_path / "small"
    directory.mkdir()
    config = {"num_hidden_layers": 4, "layer_types": list("abcd"), "hidden_size": 1}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").write_text("{}")
    names = ["model.embed_tokens.weight", "model.norm.weight", *(f"model.layers.{i}.mlp.weight" for i in range(4))]
    save_file({name: torch.ones(1) for name in names}, directory / "model.safetensors")
    return directory


def test_a_prompts_statistics_are_those_of_the_tokens_that_have_a_log_probability() -> None:
    told = statistics_of([None, {"7": {"logprob": -1.0}}, {"8": {"logprob": -3.0}}])

    assert told == PromptStatistics(mean=-2.0, std=1.0, least=-3.0, tokens=3)
    assert statistics_of([None]) == PromptStatistics(mean=0.0, std=0.0, least=0.0, tokens=1)


def test_a_cut_model_keeps_its_first_layers_and_what_belongs_to_none(llm: Path, tmp_path: Path) -> None:
    cut(llm, 2, tmp_path / "cut")

    kept = load_file(tmp_path / "cut" / "model.safetensors")
    assert sorted(kept) == [
        "model.embed_tokens.weight",
        "model.layers.0.mlp.weight",
        "model.layers.1.mlp.weight",
        "model.norm.weight",
    ]
    config = json.loads((tmp_path / "cut" / "config.json").read_text())
    assert (config["num_hidden_layers"], config["layer_types"]) == (2, ["a", "b"])
    assert (tmp_path / "cut" / "tokenizer.json").exists()


@pytest.mark.parametrize("layers", [0, 4, 9])
def test_a_model_is_not_cut_where_nothing_would_be_left_out(llm: Path, tmp_path: Path, layers: int) -> None:
    with pytest.raises(NotCut, match="has 4 layers"):
        cut(llm, layers, tmp_path / "cut")


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="give a directory with a model"):
        layer_of(tmp_path, None)
    with pytest.raises(NotCut, match="no config"):
        cut(tmp_path, 1, tmp_path / "cut")


def test_weights_that_are_not_whole_are_named(llm: Path, tmp_path: Path) -> None:
    weights = next(llm.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:20])

    with pytest.raises(NotCut, match=rf"{weights.name} cannot be read"):
        cut(llm, 2, tmp_path / "cut")


@pytest.mark.parametrize(
    ("config", "words"), [('{"num_hidden_layers": 1}', "has 1 layer"), ('{"text_config": {}}', "no plain text model")]
)
def test_a_model_without_a_middle_layer_is_refused(llm: Path, config: str, words: str) -> None:
    (llm / "config.json").write_text(config)

    with pytest.raises(InvalidRequest, match=words):
        layer_of(llm, None)


def test_only_questions_without_this_models_view_are_asked_and_every_line_is_kept(
    llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def ask(_llm: Path, _layer: int, questions: Sequence[str], *_: object) -> list[dict[str, Any]]:
        asked.extend(questions)
        return [PROBE for _ in questions]

    monkeypatch.setattr(prober, "ask", ask)
    given = [
        pool_line("a", judged("10"), question="one?", probe=PROBE | {"tokens": 9}),
        pool_line("b", judged("01"), question="two?", probe=PROBE | {"model": "other"}),
        pool_line("c", judged("01"), question="two?", arm="large", note="kept"),
    ]
    pool = write_pool(tmp_path / "pool.jsonl.gz", given)

    assert prober.probe_pool(pool, llm, tmp_path / "out.jsonl", None) == (3, 1)

    out = [json.loads(raw) for raw in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert asked == ["two?"]
    assert [line["probe"]["tokens"] for line in out] == [9, 3, 3]
    assert out[2]["note"] == "kept"
    with pytest.raises(Conflict, match="is there already"):
        prober.probe_pool(pool, llm, tmp_path / "out.jsonl", None)
    assert {line["probe"]["model"] for line in out} == {"small"}


def test_pools_whose_probes_are_of_different_models_are_not_mixed(tmp_path: Path) -> None:
    mixed = write_pool(
        tmp_path / "p.jsonl",
        [pool_line(str(i), judged("10"), probe=PROBE | {"layer": layer}) for i, layer in enumerate((2, 3))],
    )

    with pytest.raises(InvalidRequest, match="run `allotd probe` on all of them"):
        are_probed(read_pools([mixed]))
    assert not are_probed(lines(a="10"))


def test_a_cut_copy_is_of_the_model_that_is_named_and_made_once(llm: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / llm.name
    shutil.copytree(llm, other)

    first = cut_copy(llm, 2, tmp_path / "kept")
    (first / "mark").touch()
    again = cut_copy(other, 2, tmp_path / "kept")
    save_file({"model.norm.weight": torch.zeros(1)}, other / "model.safetensors")
    changed = cut_copy(other, 2, tmp_path / "kept")

    assert (again / "mark").exists(), "the same model has the same copy, wherever it lies"
    assert changed != first
    assert load_file(changed / "model.safetensors")["model.norm.weight"] == 0


@pytest.mark.parametrize(
    ("config", "tokens"),
    [({}, READ_TOKENS), ({"max_position_embeddings": 131_072}, READ_TOKENS), ({"max_position_embeddings": 1024}, 1024)],
)
def test_a_probe_reads_what_the_model_can_up_to_what_it_may_cost(
    tmp_path: Path, config: dict[str, int], tokens: int
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))

    assert tokens_read(tmp_path) == tokens
