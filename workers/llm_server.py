"""How a vLLM server is started on this host: its command line and its environment.

Run as `python -m workers.llm_server --llm NAME_OR_PATH --port P`; it becomes the server, so whoever started it owns the
server's process id and group.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

STREAM_INTERVAL = 16
"""Tokens per streamed chunk after the first: on two cores, chunks of one token cost the model a share of the CPU; an
abort leaves at most these many tokens per sample unreported."""
CPU_KVCACHE_GIB = 2
CPU_ARGUMENTS = ("--no-enable-chunked-prefill",)
"""vLLM 0.32 takes back the random numbers of a seeded request whose prompt was only partly read, which generators on a
CPU cannot do: one such request ends the server. Where prompts are read whole, that never happens."""
SHARED_GPU_SHARE, PROBE_GPU_SHARE = 0.8, 0.1
"""Parts of a GPU's memory for a served model and for the probe beside it; vLLM by itself claims nearly all of it."""
CPUINFO = Path("/proc/cpuinfo")
BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16", "svebf16"})
"""Where none of them is there, 16-bit products are emulated: on such a 2-core host SmolLM2-135M made 17 tokens/s for 16
requests at once in bfloat16, and 69 in float32."""


def vllm_command(
    llm: str,
    port: int,
    *,
    served_name: str | None = None,
    host: str = "127.0.0.1",
    eager: bool = False,
    gpu_share: float | None = None,
    extra: Sequence[str] = (),
) -> list[str]:
    """The command line that serves `llm`; `extra` is appended and so may override what stands before it.

    The module, not the `vllm` command: that one asks for the metadata of a distribution named vllm, which the CPU build
    is not. `eager` leaves out compilation: it starts a minute earlier and runs a third slower. `gpu_share` is the part
    of a GPU's memory that it may take; vLLM's own default where there is none. Without a GPU it means nothing.
    """
    if is_cpu_build():
        ours = cpu_arguments()
    else:
        ours = () if gpu_share is None else ("--gpu-memory-utilization", str(gpu_share))
    return [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        llm,
        "--served-model-name",
        served_name or llm,
        "--host",
        host,
        "--port",
        str(port),
        "--enable-prefix-caching",
        "--enable-prompt-tokens-details",
        "--stream-interval",
        str(STREAM_INTERVAL),
        "--disable-uvicorn-access-log",
        *(["--enforce-eager"] if eager else []),
        *ours,
        *extra,
    ]


def vllm_environment(llm: str, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for that command: the given one (this process's), with what vLLM needs where it is silent."""
    given = dict(os.environ if environ is None else environ)
    wanted = {"VLLM_NO_USAGE_STATS": "1", "PYTHONWARNINGS": "ignore"}
    if Path(llm).is_dir():
        wanted["HF_HUB_OFFLINE"] = "1"
    if is_cpu_build():
        cores = sorted(os.sched_getaffinity(0))
        wanted |= {
            "VLLM_CPU_OMP_THREADS_BIND": core_ranges(cores),
            "OMP_NUM_THREADS": str(len(cores)),
            "OMP_WAIT_POLICY": "PASSIVE",  # a thread that waits by spinning keeps its core from allotd's other parts
            "VLLM_CPU_KVCACHE_SPACE": str(CPU_KVCACHE_GIB),
        }
    return wanted | given


def cpu_arguments(cpuinfo: Path = CPUINFO) -> tuple[str, ...]:
    """What vLLM needs on a CPU: also 32-bit weights, where the processor has no instructions for 16-bit ones."""
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set[str]()
    return CPU_ARGUMENTS if flags & BFLOAT16_FLAGS else (*CPU_ARGUMENTS, "--dtype", "float32")


def is_cpu_build() -> bool:
    """Whether the vLLM installed here is the build for hosts without a GPU."""
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        return False
    return True


def core_ranges(cores: Sequence[int]) -> str:
    """Sorted core numbers as vLLM and taskset write them: 0-3,8."""
    runs: list[list[int]] = []
    for core in cores:
        if runs and core == runs[-1][-1] + 1:
            runs[-1].append(core)
        else:
            runs.append([core])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def main() -> None:
    """Read the command line and become the server."""
    parser = argparse.ArgumentParser(description="Start vLLM as allotd needs it.")
    parser.add_argument("--llm", required=True, help="a directory or a name on the hub")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--served-name", help="the model's name in requests; its own by default")
    parser.add_argument("--eager", action="store_true", help="start sooner, run slower")
    parser.add_argument("--beside-probe", action="store_true", help="leave a part of the GPU to a probe server")
    parser.add_argument("extra", nargs="*", help="further arguments of vLLM, after --")
    options = parser.parse_args()
    command = vllm_command(
        options.llm,
        options.port,
        served_name=options.served_name,
        host=options.host,
        eager=options.eager,
        gpu_share=SHARED_GPU_SHARE if options.beside_probe else None,
        extra=options.extra,
    )
    os.execvpe(command[0], command, vllm_environment(options.llm))  # noqa: S606 - to become it is the point


if __name__ == "__main__":
    main()
