"""How a pool is recorded from the command line: resumed where it stopped, published when it is whole."""

from __future__ import annotations

import asyncio
import fcntl
import gzip
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx
from rich.progress import Progress

from scheduler.cli.client import connect, is_local, load_profile
from scheduler.cli.output import complain, complaints
from scheduler.errors import Conflict, EngineRejected, InvalidRequest, SchedulerError
from scheduler.recording import Recording, read_workload, record, refuse_another_recording
from scheduler.requests import ParsedQuery
from scheduler.settings import Settings, one_address

STDIN = "-"
CONTEXT_TOKENS = 4096
"""Where a server does not say how long a context may be; vLLM does."""
TIMEOUT = httpx.Timeout(None, connect=10.0)  # many long samples take as long as they take
ASK_TIMEOUT_S = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What the command line asks for."""

    samples: int
    llm_url: str | None
    model: str | None
    arm: str | None
    pool: str | None
    temperature: float
    tokens_max: int
    seed: int | None
    concurrency: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """How many queries there are, and those that the server refused, with its reasons."""

    queries: int
    refused: list[str]

    @property
    def done(self) -> int:
        """Queries with all their samples."""
        return self.queries - len(self.refused)


def record_pool(workload: Path, out: Path, wanted: Wanted) -> Recorded:
    """Record what the pool does not hold yet. Raises InvalidRequest, Conflict, or EngineError when the server fails."""
    url = one_address(wanted.llm_url or _profile_llm_url() or Settings.from_env().llm_url)
    with _lines_of(workload) as lines:
        queries = read_workload(lines, _llms(url), wanted.model)
    recording = _recording(queries, out, wanted)
    with _opened(out) as journal:
        journal.refuse_another(queries, recording)
        done = journal.recorded(recording)
        left = [query for query in queries if query.custom_id not in done]
        refused = _record_all(url, left, recording, wanted.concurrency, journal)
        journal.publish()
    return Recorded(queries=len(queries), refused=refused)


@contextmanager
def _lines_of(workload: Path) -> Iterator[IO[bytes]]:
    if str(workload) == STDIN:
        yield sys.stdin.buffer
        return
    with workload.open("rb") as lines:
        yield lines


def _recording(queries: Sequence[ParsedQuery], out: Path, wanted: Wanted) -> Recording:
    models = sorted({query.model for query in queries})
    if wanted.arm is None and len(models) > 1:
        raise InvalidRequest(f"The lines name {len(models)} models ({', '.join(models)}); choose one with --model.")
    return Recording(
        pool=wanted.pool or out.name.split(".")[0],
        arm=wanted.arm or models[0],
        samples=wanted.samples,
        tokens_max=wanted.tokens_max,
        temperature=wanted.temperature,
        seed=wanted.seed,
        price=_price(models[0]),
    )


def _record_all(
    url: str, queries: Sequence[ParsedQuery], recording: Recording, concurrency: int, journal: Journal
) -> list[str]:
    """Record what is left; returns what the server refused, and why."""
    try:
        return asyncio.run(_drive(url, queries, recording, concurrency, journal))
    except (KeyboardInterrupt, SchedulerError):
        complain("Not done yet; what is recorded is kept, and the same command goes on.")
        raise


async def _drive(
    url: str, queries: Sequence[ParsedQuery], recording: Recording, concurrency: int, journal: Journal
) -> list[str]:
    refused: list[str] = []
    client = httpx.AsyncClient(base_url=url, headers=_headers(), timeout=TIMEOUT, trust_env=not is_local(url))
    progress = Progress(console=complaints(), disable=not complaints().is_terminal)
    async with client:
        with progress:
            task = progress.add_task("recording", total=len(queries))
            async for line in record(client, queries, recording, concurrency):
                if isinstance(line, EngineRejected):
                    refused.append(line.message)
                    complain(line.message)
                else:
                    journal.add(line)
                progress.advance(task)
    return refused


@dataclass(frozen=True, slots=True)
class Journal:
    """The pool, and beside it the lines recorded since it was last published: plain, so that a crash loses one line."""

    out: Path
    partial: IO[bytes]

    def recorded(self, recording: Recording) -> set[str]:
        """The ids that have their samples under this arm already."""
        return {
            line["id"]
            for line in self._parsed()
            if line["arm"] == recording.arm and len(line["samples"]) >= recording.samples
        }

    def refuse_another(self, queries: Sequence[ParsedQuery], recording: Recording) -> None:
        """Raises Conflict where what is held of these queries was drawn in another way."""
        refuse_another_recording(self._parsed(), queries, recording)

    def add(self, line: dict[str, Any]) -> None:
        """Keep one line, at once."""
        self.partial.seek(0, 2)
        self.partial.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self.partial.flush()

    def publish(self) -> None:
        """Replace the pool by all lines there are; of two of the same query and arm the one with more samples stays."""
        best: dict[tuple[str, str], tuple[int, int]] = {}
        for number, line in enumerate(self._parsed()):
            name, size = (line["id"], line["arm"]), (len(line["samples"]), number)
            best[name] = max(best.get(name, size), size)
        kept = {number for _, number in best.values()}
        draft = self.out.with_name(f"{self.out.name}.new")
        with draft.open("wb") as file, _compressed(file, self.out) as compressed:
            for number, raw in enumerate(self._lines()):
                if number in kept:
                    compressed.write(raw)
        if self.out.exists():
            shutil.copymode(self.out, draft)
        draft.replace(self.out)
        self.partial.truncate(0)

    def _parsed(self) -> Iterator[dict[str, Any]]:
        for number, raw in enumerate(self._lines(), start=1):
            try:
                line = json.loads(raw)
                line["id"], line["arm"], len(line["samples"])
            except (ValueError, KeyError, TypeError):
                raise InvalidRequest(
                    f"{self.out} is no pool (line {number} has no id, arm and samples); move it away, or choose "
                    "another --out."
                ) from None
            yield line

    def _lines(self) -> Iterator[bytes]:
        if self.out.exists():
            with _reading(self.out) as lines:
                yield from lines
        self.partial.seek(0)
        yield from self.partial


@contextmanager
def _opened(out: Path) -> Iterator[Journal]:
    """The journal of a pool, which only one process may hold."""
    partial = out.with_name(f"{out.name}.partial")
    with partial.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(f"Another process records into {out}; wait for it, or stop it.") from None
        _drop_torn_line(file)
        yield Journal(out, file)
        if not partial.stat().st_size:
            partial.unlink()


def _drop_torn_line(file: IO[bytes]) -> None:
    """A line that a crash cut off has no end; it is recorded again."""
    file.seek(0)
    whole = sum(len(line) for line in file if line.endswith(b"\n"))
    file.truncate(whole)


@contextmanager
def _reading(path: Path) -> Iterator[IO[bytes]]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file  # type: ignore[misc]  # GzipFile is an IO[bytes] in all but its declaration
    except (gzip.BadGzipFile, EOFError, KeyError, ValueError) as error:
        raise InvalidRequest(f"{path} is no pool ({error}); move it away, or choose another --out.") from None


@contextmanager
def _compressed(file: IO[bytes], out: Path) -> Iterator[IO[bytes]]:
    if out.suffix != ".gz":
        yield file
        return
    with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as compressed:
        yield compressed  # type: ignore[misc]


def _llms(url: str) -> dict[str, int]:
    """The served models and how long their contexts may be."""
    try:
        answer = httpx.get(f"{url}/models", headers=_headers(), timeout=ASK_TIMEOUT_S, trust_env=not is_local(url))
        answer.raise_for_status()
        return {card["id"]: card.get("max_model_len") or CONTEXT_TOKENS for card in answer.json()["data"]}
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
        raise InvalidRequest(
            f"No model server answers at {url} ({error}); say where it is with --llm-url, as http://127.0.0.1:8000/v1."
        ) from None


def _headers() -> dict[str, str]:
    key = Settings.from_env().llm_api_key
    return {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}


def _price(model: str) -> dict[str, float] | None:
    """The model's price where an allotd is there to ask."""
    with suppress(SchedulerError), connect() as api:
        for price in api.pages("/v1/prices"):
            if price["model"] == model and price["in_force"]:
                return {name: float(price[name]) for name in ("prompt_usd_per_mtok", "completion_usd_per_mtok")}
    return None


def _profile_llm_url() -> str | None:
    with suppress(SchedulerError):
        return load_profile().llm_url
    return None
