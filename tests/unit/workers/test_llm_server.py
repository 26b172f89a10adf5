"""How vLLM is started."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from workers import llm_server
from workers.llm_server import core_ranges, vllm_command, vllm_environment


@pytest.mark.parametrize(
    ("cores", "written"), [([0, 1], "0-1"), ([0, 1, 2, 3, 8], "0-3,8"), ([5], "5"), ([0, 2, 4], "0,2,4")]
)
def test_cores_are_written_as_ranges(cores: list[int], written: str) -> None:
    assert core_ranges(cores) == written


def test_a_model_goes_by_its_own_name_unless_it_is_given_one() -> None:
    own = vllm_command("org/model", 8000)
    given = vllm_command("org/model", 8000, served_name="m")

    assert own[own.index("--served-model-name") + 1] == "org/model"
    assert given[given.index("--served-model-name") + 1] == "m"


def test_further_arguments_stand_last_and_so_decide() -> None:
    assert vllm_command("m", 8000, extra=("--stream-interval", "1"))[-2:] == ["--stream-interval", "1"]


def test_the_hub_is_not_asked_for_a_model_on_disk(tmp_path: Path) -> None:
    assert vllm_environment(str(tmp_path), {})["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in vllm_environment("org/model", {})


def test_what_the_operator_set_is_kept() -> None:
    assert vllm_environment("m", {"OMP_NUM_THREADS": "7"})["OMP_NUM_THREADS"] == "7"


def test_a_host_without_a_gpu_uses_the_cores_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm_server, "version", lambda _name: "0.32.0")

    environment = vllm_environment("m", {})

    cores = sorted(os.sched_getaffinity(0))
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == core_ranges(cores)
    assert environment["OMP_NUM_THREADS"] == str(len(cores))
    assert "--no-enable-chunked-prefill" in vllm_command("m", 8000)


def test_two_models_share_a_gpu_unless_the_operator_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm_server, "is_cpu_build", lambda: False)

    alone, shared = vllm_command("m", 8000), vllm_command("m", 8000, gpu_share=0.8)
    told = vllm_command("m", 8000, gpu_share=0.8, extra=("--gpu-memory-utilization", "0.7"))

    assert "--gpu-memory-utilization" not in alone
    assert shared[-2:] == ["--gpu-memory-utilization", "0.8"]
    assert told[-2:] == ["--gpu-memory-utilization", "0.7"]
    assert llm_server.SHARED_GPU_SHARE + llm_server.PROBE_GPU_SHARE < 1


def test_a_host_without_a_gpu_shares_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm_server, "is_cpu_build", lambda: True)

    assert "--gpu-memory-utilization" not in vllm_command("m", 8000, gpu_share=0.8)


def test_weights_are_32_bits_wide_where_the_processor_only_emulates_16(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("flags : fpu sse2 avx2")
    new.write_text("flags : fpu avx512f avx512_bf16")

    assert "float32" in llm_server.cpu_arguments(old)
    assert "float32" not in llm_server.cpu_arguments(new)
