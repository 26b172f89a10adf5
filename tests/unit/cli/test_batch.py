"""Batches from the command line: files checked, sent, watched, cancelled and fetched, against the real API."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update

from models.tables import Batch, File, QueryRow
from scheduler.finalization import finalize
from scheduler.intake import advance_intake
from scheduler.states import BatchState, QueryState
from scheduler.wiring import utc_now
from tests.deployment import sums
from tests.unit.cli.conftest import Allotd, Server


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Four lines that can run, and one that cannot."""
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in sums(4)) + "{}\n")
    return path


@pytest.fixture
def batch(priced: Server, allotd: Allotd, file: Path) -> str:
    """A batch whose lines are read."""
    batch_id = str(allotd("batch", "submit", str(file), "--tenant", "acme", "--json").json["id"])
    with priced.sessions.begin() as session:
        advance_intake(session, batch_id, priced.services.settings, utc_now())
    return batch_id


def test_a_file_that_cannot_be_a_batch_is_refused_before_anything_is_sent(allotd: Allotd, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.touch()

    missing, hollow, directory = (allotd("batch", "submit", str(p)) for p in (tmp_path / "none", empty, tmp_path))

    assert missing.err == f"allotd: There is no file {tmp_path / 'none'}.\n"
    assert hollow.err == f"allotd: {empty} is empty; it should hold one JSON object per line.\n"
    assert directory.err == f"allotd: {tmp_path} is not a regular file.\n"
    assert {missing.code, hollow.code, directory.code} == {2}


def test_a_file_over_the_limit_is_refused_with_both_sizes(
    allotd: Allotd, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALLOTD_FILE_BYTES_MAX", "10")

    refused = allotd("batch", "submit", str(file))

    assert refused.code == 2
    assert f"{file.stat().st_size:,} bytes; a batch may have 10" in refused.err


def test_an_admin_is_told_to_name_the_tenant(priced: Server, allotd: Allotd, file: Path) -> None:
    refused = allotd("batch", "submit", str(file))

    assert refused.code == 1
    assert "tenant" in refused.err


def test_a_submitted_batch_is_named_and_how_to_watch_it(priced: Server, allotd: Allotd, file: Path) -> None:
    done = allotd("batch", "submit", str(file), "--tenant", "acme", "--max-cost", "0.5", "--strategy", "direct")

    (batch,) = allotd("batch", "list", "--json").json
    assert done.out == (
        f"Batch {batch['id']} is submitted.\nWatch it with `allotd batch status {batch['id']} --wait`.\n"
    )
    assert batch["metadata"] == {"cost_max_usd": "0.5", "strategy": "direct"}
    assert batch["allotd"]["limit_nanousd"] == 500_000_000


def test_the_same_idempotency_key_gives_the_same_batch_and_leaves_no_second_file(
    priced: Server, allotd: Allotd, file: Path
) -> None:
    first, second = (
        allotd("batch", "submit", str(file), "--tenant", "acme", "--idempotency-key", "k", "--json").json
        for _ in range(2)
    )

    assert first["id"] == second["id"]
    with priced.sessions() as session:
        assert session.scalar(select(func.count()).where(File.deleted_at.is_(None), File.batch_id.is_(None))) == 1


def test_an_idempotency_key_for_other_lines_is_refused_and_leaves_no_second_file(
    priced: Server, allotd: Allotd, file: Path
) -> None:
    arguments = ("batch", "submit", str(file), "--tenant", "acme", "--idempotency-key", "k")
    allotd(*arguments)
    file.write_text(json.dumps(sums(1)[0]))

    refused = allotd(*arguments)

    assert refused.code == 1
    assert "use a new key for a new request" in refused.err
    with priced.sessions() as session:
        assert session.scalar(select(func.count()).where(File.deleted_at.is_(None), File.batch_id.is_(None))) == 1


def test_a_dry_run_says_low_expected_and_worst_cost_and_changes_nothing(
    priced: Server, allotd: Allotd, file: Path
) -> None:
    done = allotd("batch", "submit", str(file), "--tenant", "acme", "--dry-run", "--max-cost", "1")

    assert done.code == 0
    assert "5 lines, 4 of them can run. Nothing was changed." in done.out
    for word in ("low", "expected", "worst", "limit", "custom_id is missing"):
        assert word in done.out
    with priced.sessions() as session:
        assert session.scalar(select(func.count()).select_from(Batch)) == 0
        assert session.scalar(select(func.count()).select_from(File)) == 0


def test_the_status_shows_every_state_that_has_lines(allotd: Allotd, batch: str) -> None:
    status = allotd("batch", "status", batch)

    assert status.code == 0
    assert "in_progress" in status.out
    assert "queued" in status.out
    assert "failed" in status.out
    assert "answered" not in status.out
    assert allotd("batch", "status", batch, "--json").json["allotd"]["states"]["queued"] == 4


def test_a_batch_that_does_not_exist_is_named(priced: Server, allotd: Allotd) -> None:
    done = allotd("batch", "status", "batch_0?x")

    assert done.code == 1
    assert done.err == "allotd: There is no batch 'batch_0?x'.\n"


def test_lines_without_an_answer_are_fetched_with_their_reason(allotd: Allotd, batch: str, tmp_path: Path) -> None:
    printed = allotd("batch", "errors", batch)
    saved = allotd("batch", "errors", batch, "--out", str(tmp_path / "errors.jsonl"))

    (line,) = printed.out.splitlines()
    assert json.loads(line)["error"]["line"] == 5
    assert (tmp_path / "errors.jsonl").read_text() == printed.out
    assert saved.out == f"1 lines are in {tmp_path / 'errors.jsonl'}.\n"
    assert allotd("batch", "errors", batch, "--json").json == [json.loads(line)]
    assert allotd("batch", "output", batch, "--json").json == []


def test_a_cancelled_batch_ends_the_wait_with_code_1(priced: Server, allotd: Allotd, batch: str) -> None:
    cancelled = allotd("batch", "cancel", batch)
    end(priced, batch)

    waited = allotd("batch", "status", batch, "--wait")

    assert cancelled.code == 0
    assert waited.code == 1
    assert f"Batch {batch} is cancelled: " in waited.out
    assert "4 cancelled" in waited.out
    assert f"allotd batch errors {batch}" in waited.out


def test_a_completed_batch_ends_the_wait_with_code_0_and_its_counts(priced: Server, allotd: Allotd, batch: str) -> None:
    set_queries(priced, state=QueryState.ANSWERED, finished_at=utc_now())
    end(priced, batch)

    waited = allotd("batch", "status", batch, "--wait")

    assert waited.code == 4
    assert "completed: 4 answered · 0 running · 0 queued · 1 failed · 0.00 USD" in waited.out
    assert f"Batch {batch} is completed:" in waited.out


def test_a_file_without_a_good_line_fails_the_batch_and_says_why(
    priced: Server, allotd: Allotd, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text("nonsense\n")
    batch_id = allotd("batch", "submit", str(bad), "--tenant", "acme", "--json").json["id"]
    with priced.sessions.begin() as session:
        advance_intake(session, batch_id, priced.services.settings, utc_now())

    waited = allotd("batch", "status", batch_id, "--wait")

    assert waited.code == 1
    assert "is failed" in waited.out
    assert "Line 1" in waited.out


def test_a_dash_reads_the_lines_from_stdin_and_lists_the_bad_ones(
    priced: Server, allotd: Allotd, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b'{"custom_id": "broken-1", "method"\n[]\n'))
    monkeypatch.setattr("sys.stdin", stdin)

    dry = allotd("batch", "submit", "-", "--tenant", "acme", "--dry-run")

    assert dry.code == 0
    assert "2 lines, 0 of them can run." in dry.out
    assert "broken-1" in dry.out
    assert "Line 2 is a list, not an object" in dry.out


def test_an_empty_stdin_is_refused(priced: Server, allotd: Allotd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))

    refused = allotd("batch", "submit", "-", "--tenant", "acme")

    assert (refused.code, refused.err) == (2, "allotd: stdin is empty; it should hold one JSON object per line.\n")


def test_a_batch_is_listed_with_its_tenant_progress_and_times(priced: Server, allotd: Allotd, batch: str) -> None:
    listed = allotd("batch", "list").out.splitlines()

    assert listed[0].split("  ")[0] == "id"
    assert [word for word in ("tenant", "status", "done", "created", "ended") if word not in listed[0]] == []
    assert listed[1].split()[:4] == [batch, "acme", "in_progress", "1/5"]


def test_lines_stopped_by_a_cap_end_the_wait_with_code_3_and_the_command_that_raises_it(
    priced: Server, allotd: Allotd, batch: str
) -> None:
    cap = allotd("cap", "set", "acme", "0.001", "--per", "day", "--json").json
    set_queries(priced, state=QueryState.PARKED, parked_because=f"cap {cap['id']} (day)")

    waited = allotd("batch", "status", batch, "--wait")

    assert waited.code == 3
    assert f"4 lines of batch {batch} wait for money" in waited.out
    assert "4 are stopped by the day cap of acme: 0.00 of 0.001000 USD are spent. It turns at " in waited.out
    assert waited.out.endswith("allotd cap set acme USD --per day\n")


@pytest.mark.parametrize(
    ("because", "words"), [("batch", "the batch's own limit"), ("query", "their own cost_max_usd")]
)
def test_lines_stopped_by_their_own_limits_say_which(
    priced: Server, allotd: Allotd, batch: str, because: str, words: str
) -> None:
    set_queries(priced, state=QueryState.PARKED, parked_because=because)

    waited = allotd("batch", "status", batch, "--wait", "--json")

    assert waited.code == 3
    assert json.loads(waited.out)["allotd"]["parked"] == [{"because": because, "queries": 4}]
    assert words in allotd("batch", "status", batch, "--wait").out


def test_reports_of_nothing_and_of_something(priced: Server, allotd: Allotd, batch: str) -> None:
    nothing = allotd("report", "--from", "2020-01-01", "--to", "2020-01-02")
    table = allotd("report")
    rows = allotd("report", "--by", "batch", "--format", "csv").out.splitlines()

    assert nothing.out.startswith("Nothing was asked in this period.\n")
    assert "acme" in table.out
    assert rows[0].startswith("batch,queries,answered,budget_stopped,abandoned,failed,cancelled,expired,")
    assert rows[1].startswith(f"{batch},1,0,0,0,1,0,0,")
    assert rows[-1].startswith("total,1,")
    assert allotd("report", "--format", "json").json == allotd("report", "--json").json


def test_a_report_of_a_date_that_is_none_is_refused_in_one_line(priced: Server, allotd: Allotd) -> None:
    refused = allotd("report", "--from", "yesterday")

    assert refused.code == 1
    assert "yesterday" in refused.err or "from" in refused.err
    assert refused.err.count("\n") == 1


def set_queries(server: Server, **values: Any) -> None:
    """Change the lines that can run, as workers would."""
    with server.sessions.begin() as session:
        session.execute(update(QueryRow).where(QueryRow.state == QueryState.QUEUED).values(**values))


def end(server: Server, batch_id: str) -> None:
    """Do what the daemon does when no line is open."""
    with server.sessions.begin() as session:
        batch = session.get_one(Batch, batch_id)
        while batch.state not in {BatchState.COMPLETED, BatchState.CANCELLED}:
            finalize(session, batch, utc_now())
            session.refresh(batch)


def test_a_plan_says_what_amounts_would_reach(priced: Server, allotd: Allotd, file: Path) -> None:
    told = allotd("plan", str(file), "--tenant", "acme", "--what-if", "0.000001,5")
    refused = allotd("plan", str(file), "--tenant", "acme", "--what-if", "5,lots")

    assert "4 of 5 lines can run" in told.out
    assert "right answers" in told.out
    assert refused.code == 1
    assert "'lots' is no number" in refused.err
