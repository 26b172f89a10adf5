"""How a pool gets its probe features: a cut copy of a model for hidden states, then the whole one for surprise."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx

from scheduler.cli.output import complain
from scheduler.cli.parts import free_port
from scheduler.errors import Conflict
from scheduler.probing import PromptStatistics, hidden_states, layer_of, prompt_statistics
from scheduler.simulation.pools import read_pools
from scheduler.supervision import Part, PartFailed, StopAsked, Supervisor

ANSWER_S = 2.0
ALONE = "0.8"
"""The part of a GPU that a server may take which has it to itself."""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """A model server that runs already: its URL, which ends in /v1, and the model's name there."""

    url: str
    model: str


def probe_pool(
    pool: Path, llm: Path, out: Path, layer: int | None, served: Served | None = None, extra: Sequence[str] = ()
) -> tuple[int, int]:
    """Write the pool with a probe on every line; returns how many lines there are, and how many questions were asked.

    Lines that a probe of the same model and layer stands on already are kept as they are. `served` is a server of the
    whole model, `extra` are arguments of vLLM. Raises InvalidRequest, Conflict where `out` is another file or `pool`
    changes meanwhile, and EngineRejected or PartFailed where the model server fails; `out` is written whole or not at
    all.
    """
    layer, model = layer_of(llm, layer), name_of(llm)
    if out.exists() and not out.samefile(pool):
        raise Conflict(f"{out} is there already; choose another name, or {pool} itself.")
    read_pools([pool])  # names what is wrong with it
    before = _stamp(pool)
    lines = [json.loads(raw) for raw in _opened(pool)]
    questions = sorted({line["question"] for line in lines if not is_probed(line.get("probe"), model, layer)})
    probes = dict(zip(questions, ask(llm, layer, questions, served, extra), strict=True)) if questions else {}
    for line in lines:
        if line["question"] in probes and not is_probed(line.get("probe"), model, layer):
            line["probe"] = probes[line["question"]]
    if _stamp(pool) != before:
        raise Conflict(f"{pool} was changed meanwhile; nothing is written. Run the command again.")
    _publish(lines, out)
    return len(lines), len(questions)


def _stamp(pool: Path) -> tuple[int, int, int]:
    stat = pool.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def is_probed(probe: Mapping[str, Any] | None, model: str, layer: int) -> bool:
    """Whether a line has this model's view already."""
    return probe is not None and (probe.get("model"), probe.get("layer")) == (model, layer)


def ask(
    llm: Path, layer: int, questions: Sequence[str], served: Served | None, extra: Sequence[str]
) -> list[dict[str, Any]]:
    """A probe per question, from two servers one after the other, or one where the whole model is served already.

    Where a server of ours fails, its log is kept and named.
    """
    directory, name = Path(tempfile.mkdtemp(prefix="allotd-probe-")), name_of(llm)
    cut = directory / "cut"
    try:
        complain(f"Reading layer {layer} of {name} for {len(questions)} questions ...")
        alone = () if served is not None else ("--gpu-share", ALONE)
        reader = ("workers.probe_server", "--llm", str(llm), "--layer", str(layer), "--keep-in", str(cut), *alone)
        vectors = _with_server(directory, reader, name, extra, partial(hidden_states, name, questions))
        complain("Reading the prompts' log-probabilities ...")
        if served is not None:
            told = prompt_statistics(served.model, questions, served.url)
        else:
            whole = ("workers.llm_server", "--llm", str(llm))
            told = _with_server(directory, whole, name, extra, partial(prompt_statistics, name, questions))
    except PartFailed:
        shutil.rmtree(cut, ignore_errors=True)
        raise
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    shutil.rmtree(directory)
    return [_probe(name, layer, *both) for both in zip(vectors, told, strict=True)]


def name_of(llm: Path) -> str:
    """What probes call a model: the name of its directory."""
    return llm.resolve().name


def _probe(model: str, layer: int, vector: list[float], told: PromptStatistics) -> dict[str, Any]:
    return {
        "model": model,
        "layer": layer,
        "vector": vector,
        "logprob_mean": round(told.mean, 5),
        "logprob_std": round(told.std, 5),
        "logprob_min": round(told.least, 5),
        "tokens": told.tokens,
    }


def _with_server(
    directory: Path, server: Sequence[str], name: str, extra: Sequence[str], work: Callable[[str], T]
) -> T:
    """Do something with a model server of its own, which is gone afterwards; Ctrl-C ends both."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    arguments = ("--served-name", name, "--port", str(port), "--eager", *(("--", *extra) if extra else ()))
    part = Part(
        name="vllm",
        command=(sys.executable, "-m", *server, *arguments),
        is_ready=lambda: _is_healthy(url),
        ready_timeout_s=None,
    )
    supervisor = Supervisor(directory, complain)
    supervisor.listen()
    asking = ThreadPoolExecutor(1)
    try:
        supervisor.start(part)
        supervisor.wait_ready(part.name)
        answers = asking.submit(work, f"{url}/v1/")
        while not answers.done():
            supervisor.check()
        return answers.result()
    except StopAsked:
        raise KeyboardInterrupt from None
    finally:
        supervisor.stop()
        asking.shutdown()  # whatever is still asked fails now, as nobody is there to answer


def _is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=ANSWER_S, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def _opened(pool: Path) -> Iterator[bytes]:
    packed = pool.read_bytes()
    plain = gzip.decompress(packed) if packed[:2] == b"\x1f\x8b" else packed
    return (raw for raw in plain.splitlines() if raw.strip())


def _publish(lines: Sequence[Mapping[str, Any]], out: Path) -> None:
    text = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines).encode()
    draft = out.with_name(f"{out.name}.new")
    draft.write_bytes(gzip.compress(text, mtime=0) if out.suffix == ".gz" else text)
    draft.replace(out)
