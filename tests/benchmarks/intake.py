"""How fast a file becomes queries, against only parsing its lines and inserting the same rows, and how memory grows."""

from __future__ import annotations

import gc
import json
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, cast

import msgspec
from sqlalchemy import Table as SqlTable
from sqlalchemy import insert, select
from sqlalchemy.orm import Session, sessionmaker

from models.tables import Batch, QueryRow, Tenant
from scheduler.files import read_chunks, store_upload
from scheduler.intake import advance_intake, create_batch
from scheduler.requests import ENDPOINT
from scheduler.settings import Settings
from scheduler.states import BatchState
from tests.benchmarks.figures import Figure, print_figures
from tests.factories import MODEL, NOW, add_batch, add_tenant, new_sessions

SIZES = (1_000, 10_000, 50_000)
ROUNDS = 5
STEP = 1000
"""Lines per transaction, as the daemon does it; the baseline commits as often."""
RATIO_MIN = 0.5
LEFT_OUT = {"id", "prompt_tokens_estimated", "parked_because", "parked_need_nanousd", "started_at"}
LEFT_OUT |= {"chosen_sample_id", "confidence", "correct"}
QUERIES = cast("SqlTable", QueryRow.__table__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Seconds of every round, and the most memory that Python held at once."""

    lines: int
    intake_s: tuple[float, ...]
    baseline_s: tuple[float, ...]
    peak_bytes: int

    @property
    def ratios(self) -> tuple[float, ...]:
        """Intake's rate in parts of the baseline's, of every round."""
        return tuple(baseline / intake for intake, baseline in zip(self.intake_s, self.baseline_s, strict=True))


def content(lines: int) -> bytes:
    """A file of short graded questions with a verifier, as a batch of evaluations has them."""
    return b"\n".join(
        json.dumps(
            {
                "custom_id": f"question-{i}",
                "method": "POST",
                "url": ENDPOINT,
                "body": {
                    "model": MODEL,
                    "messages": [
                        {"role": "system", "content": "Answer with a number only."},
                        {"role": "user", "content": f"A shelf holds {i} books and {i % 97} more arrive. How many now?"},
                    ],
                    "max_tokens": 128,
                    "temperature": 0.7,
                    "allotd": {"verifier": "numeric", "reference": str(i + i % 97), "task": "books"},
                },
            }
        ).encode()
        for i in range(lines)
    )


def measure(lines: int, rounds: int = ROUNDS) -> Measured:
    """Both ways on a new SQLite file each, in turn, so that a busy machine slows both."""
    file = content(lines)
    intake, baseline = [], []
    for _ in range(rounds):
        with _database() as sessions:
            intake.append(_intake_s(sessions, file))
            rows = _rows(sessions)
        with _database() as sessions:
            baseline.append(_baseline_s(sessions, file, rows))
        del rows
    with _database() as sessions:
        peak = _peak_bytes(sessions, file)
    return Measured(lines=lines, intake_s=tuple(intake), baseline_s=tuple(baseline), peak_bytes=peak)


def run() -> list[Figure]:
    """Measure and print all sizes; the promise is about the largest."""
    print(f"\n{'lines':<8}{'us/line':>10}{'baseline us/line':>18}{'ratio':>8}{'peak MB':>9}")
    for lines in SIZES:
        measured = measure(lines)
        us = [median(seconds) / lines * 1e6 for seconds in (measured.intake_s, measured.baseline_s)]
        print(f"{lines:<8}{us[0]:>10.1f}{us[1]:>18.1f}{median(measured.ratios):>8.2f}{measured.peak_bytes / 1e6:>9.1f}")
    name = f"intake of {lines // 1000}k lines / parsing and inserting the same rows"
    return [Figure(name=name, rounds=measured.ratios, at_least=RATIO_MIN)]


@contextmanager
def _database() -> Iterator[sessionmaker[Session]]:
    with (
        tempfile.TemporaryDirectory() as directory,
        new_sessions(f"sqlite:///{Path(directory) / 'bench.db'}") as sessions,
    ):
        with sessions.begin() as session:
            add_tenant(session)
        yield sessions


def _open(sessions: sessionmaker[Session], file: bytes) -> str:
    with sessions.begin() as session:
        stored = store_upload(session, "tenant_acme", "f", "batch", [file], bytes_max=len(file), now=NOW)
        return create_batch(session, "tenant_acme", input_file_id=stored.id, endpoint=ENDPOINT, now=NOW).id


def _take_in(sessions: sessionmaker[Session], batch_id: str) -> None:
    settings = Settings()
    finished = False
    while not finished:
        with sessions.begin() as session:
            finished = advance_intake(session, batch_id, settings, NOW, STEP)
    with sessions() as session:
        assert session.get_one(Batch, batch_id).state == BatchState.IN_PROGRESS


def _intake_s(sessions: sessionmaker[Session], file: bytes) -> float:
    batch_id = _open(sessions, file)
    gc.collect()
    begun = time.perf_counter()
    _take_in(sessions, batch_id)
    return time.perf_counter() - begun


def _baseline_s(sessions: sessionmaker[Session], file: bytes, rows: list[dict[str, Any]]) -> float:
    """Read the same file out of the database, parse every line, insert the rows as they are."""
    with sessions.begin() as session:
        stored = store_upload(session, "tenant_acme", "f", "batch", [file], bytes_max=len(file), now=NOW)
        batch_id = add_batch(session, _tenant(session)).id
    for row in rows:
        row["batch_id"] = batch_id
    decode = msgspec.json.Decoder().decode
    gc.collect()
    begun = time.perf_counter()
    with sessions() as session:
        lines = b"".join(read_chunks(session, stored.id)).split(b"\n")
    for first in range(0, len(lines), STEP):
        for line in lines[first : first + STEP]:
            decode(line)
        with sessions.begin() as session:
            session.execute(insert(QUERIES), rows[first : first + STEP])
    return time.perf_counter() - begun


def _peak_bytes(sessions: sessionmaker[Session], file: bytes) -> int:
    batch_id = _open(sessions, file)
    del file
    gc.collect()
    tracemalloc.start()
    _take_in(sessions, batch_id)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def _rows(sessions: sessionmaker[Session]) -> list[dict[str, Any]]:
    """What intake wrote, without the columns that it leaves to their defaults."""
    columns = [column for column in QUERIES.columns if column.default is None and column.name not in LEFT_OUT]
    with sessions() as session:
        return [dict(row) for row in session.execute(select(*columns).order_by(QueryRow.id)).mappings()]


def _tenant(session: Session) -> Tenant:
    return session.get_one(Tenant, "tenant_acme")


if __name__ == "__main__":
    print_figures(run())
