"""`allotd batch`: send questions, watch them being answered, fetch the answers."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from scheduler.cli.client import Api, Refused, connect, part, sha256_of
from scheduler.cli.output import AsJson, moment, print_json, print_table, say, show, usd
from scheduler.cli.waiting import EXIT_CODES, final_words, wait
from scheduler.errors import InvalidRequest

STDIN = "-"
ENDPOINT = "/v1/chat/completions"
WINDOW = "24h"
SHOWN_BAD_LINES = 20
LIST_LIMIT = 20
CHUNK_BYTES = 1024 * 1024
_OTHER_FILE = re.compile(r"(batch_[0-9a-f]+) with another input_file_id;")

app = typer.Typer(help="Send questions, watch them being answered, fetch the answers.", no_args_is_help=True)

BatchId = Annotated[str, typer.Argument(metavar="BATCH", help="The batch's id.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Write to this file instead of stdout.")]
TenantOption = Annotated[str | None, typer.Option(help="The tenant that pays; an admin key needs it.")]


@app.command(epilog=EXIT_CODES)
def submit(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="JSON lines, as OpenAI's Batch API takes them; - reads stdin.")
    ],
    tenant: TenantOption = None,
    max_cost: Annotated[str | None, typer.Option(metavar="USD", help="The most the whole batch may cost.")] = None,
    strategy: Annotated[str | None, typer.Option(help="How lines are answered that do not say it themselves.")] = None,
    is_waiting: Annotated[bool, typer.Option("--wait", help="Stay until it is done or money runs out.")] = False,
    is_dry: Annotated[bool, typer.Option("--dry-run", help="Say what it would cost, and change nothing.")] = False,
    idempotency_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="The same key again returns the same batch.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Send a file of questions."""
    with readable(file) as lines, connect(tenant=tenant) as api:
        if is_dry:
            _print_dry_run(_dry_run(api, lines, max_cost, strategy), as_json)
            return
        batch = _create(api, lines, max_cost, strategy, idempotency_key)
        if not as_json:
            say(f"Batch {batch['id']} is submitted.")
        if not is_waiting:
            show(batch, as_json, lambda: say(f"Watch it with `allotd batch status {batch['id']} --wait`."))
            return
        _wait_and_leave(api, batch["id"], as_json)


@app.command(epilog=EXIT_CODES)
def status(
    batch_id: BatchId,
    is_waiting: Annotated[bool, typer.Option("--wait", help="Stay until it is done or money runs out.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show how far a batch is, and what it has cost."""
    with connect() as api:
        if is_waiting:
            _wait_and_leave(api, batch_id, as_json)
        batch = _get(api, batch_id)
    show(batch, as_json, lambda: _print_batch(batch))


@app.command("list")
def list_(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = LIST_LIMIT,
    as_json: AsJson = False,
) -> None:
    """List batches, newest first."""
    with connect(tenant=tenant) as api:
        batches = api.pages("/v1/batches", limit=limit)
    headings = ("id", "tenant", "status", "done", "failed", "spent USD", "created", "ended")
    right = "done  failed  spent USD"
    empty = "There is no batch yet; send one with `allotd batch submit FILE`."
    show(batches, as_json, lambda: print_table(headings, [_row(b) for b in batches], right=right, empty=empty))


@app.command()
def cancel(batch_id: BatchId, as_json: AsJson = False) -> None:
    """Cancel a batch: nothing new is started, and what was answered stays."""
    with connect() as api:
        batch = api.post(f"/v1/batches/{part(batch_id)}/cancel")
    show(batch, as_json, lambda: say(f"Batch {batch_id} is {batch['status']}."))


@app.command()
def output(batch_id: BatchId, out: Out = None, as_json: AsJson = False) -> None:
    """Fetch the answers there are so far, as JSON lines."""
    _fetch(batch_id, "output_file_id", out, as_json)


@app.command()
def errors(batch_id: BatchId, out: Out = None, as_json: AsJson = False) -> None:
    """Fetch the lines that have no answer, with the reason of each, as JSON lines."""
    _fetch(batch_id, "error_file_id", out, as_json)


@contextmanager
def readable(file: Path) -> Iterator[Path]:
    """The file, checked; what comes through stdin is kept in one for as long as it is needed."""
    if str(file) != STDIN:
        _check_file(file, str(file))
        yield file
        return
    with TemporaryDirectory(prefix="allotd-") as directory:
        spooled = Path(directory) / "stdin.jsonl"
        with spooled.open("wb") as spool:
            shutil.copyfileobj(sys.stdin.buffer, spool)
        _check_file(spooled, "stdin")
        yield spooled


def _check_file(file: Path, name: str) -> None:
    from scheduler.settings import Settings  # noqa: PLC0415 (slow to import)

    if not file.exists():
        raise InvalidRequest(f"There is no file {name}.")
    if not file.is_file():
        raise InvalidRequest(f"{name} is not a regular file.")
    size, most = file.stat().st_size, Settings.from_env().file_bytes_max
    if size == 0:
        raise InvalidRequest(f"{name} is empty; it should hold one JSON object per line.")
    if size > most:
        raise InvalidRequest(f"{name} has {size:,} bytes; a batch may have {most:,}. Split it.")


def _dry_run(api: Api, file: Path, max_cost: str | None, strategy: str | None) -> dict[str, Any]:
    with file.open("rb") as content:
        return api.send("/v1/batches/dry-run", content, "application/jsonl", strategy=strategy, max_cost_usd=max_cost)


def _create(
    api: Api, file: Path, max_cost: str | None, strategy: str | None, idempotency_key: str | None
) -> dict[str, Any]:
    uploaded = api.upload(file)
    wanted = {
        "input_file_id": uploaded["id"],
        "endpoint": ENDPOINT,
        "completion_window": WINDOW,
        "metadata": {
            name: value for name, value in (("cost_max_usd", max_cost), ("strategy", strategy)) if value is not None
        }
        or None,
    }
    if idempotency_key is None:
        return api.post("/v1/batches", wanted)
    try:
        return api.post("/v1/batches", wanted, headers={"Idempotency-Key": idempotency_key})
    except Refused as refused:
        api.delete(f"/v1/files/{uploaded['id']}")
        if (earlier := _same_batch(api, refused, file)) is None:
            raise
        return earlier


def _same_batch(api: Api, refused: Refused, file: Path) -> dict[str, Any] | None:
    """The batch that the key opened before, if it differs in nothing but that its file was uploaded another time."""
    named = _OTHER_FILE.search(refused.message)
    if named is None:
        return None
    earlier = _get(api, named[1])
    with file.open("rb") as local:
        ours = sha256_of(iter(lambda: local.read(CHUNK_BYTES), b""))
    theirs = api.digest(f"/v1/files/{part(earlier['input_file_id'])}/content")
    return earlier if ours == theirs else None


def _get(api: Api, batch_id: str) -> dict[str, Any]:
    return api.get(f"/v1/batches/{part(batch_id)}")


def _wait_and_leave(api: Api, batch_id: str, as_json: bool) -> None:
    """Wait, say how it ended, and leave with the code that tells a script."""
    ending = wait(api, batch_id, is_quiet=as_json)
    if as_json:
        print_json(ending.batch)
    else:
        say(final_words(ending))
    raise typer.Exit(ending.exit_code)


def _fetch(batch_id: str, which: str, out: Path | None, as_json: bool) -> None:
    with connect() as api:
        file_id = _get(api, batch_id)[which]
        lines = api.lines(f"/v1/files/{part(file_id)}/content") if file_id else iter(())
        if out is None:
            _write(lines, sys.stdout, as_json)
            return
        with out.open("w", encoding="utf-8") as file:
            count = _write(lines, file, as_json)
    say(f"{count} lines are in {out}.")


def _write(lines: Iterator[str], stream: Any, as_json: bool) -> int:
    """Write lines as they are, or as one JSON array; returns how many there were."""
    count = 0
    for count, line in enumerate(lines, start=1):
        stream.write(f"{',' if count > 1 else '['}\n{line}" if as_json else f"{line}\n")
    if as_json:
        stream.write("\n]\n" if count else "[]\n")
    return count


def _print_dry_run(dry: Mapping[str, Any], as_json: bool) -> None:
    def render() -> None:
        say(f"{dry['lines']} lines, {dry['runnable']} of them can run. Nothing was changed.")
        costs = (("low", "low"), ("expected", "expected"), ("worst", "worst"), ("limit", "limit"))
        rows = [(name, usd(dry[f"{key}_nanousd"])) for name, key in costs if dry.get(f"{key}_nanousd") is not None]
        print_table(("cost", "USD"), rows, right="USD", empty="")
        bad = dry["bad"]
        if bad:
            say("")
            bad_rows = [(line["line"], line["custom_id"], line["message"]) for line in bad[:SHOWN_BAD_LINES]]
            print_table(("line", "custom_id", "what is wrong"), bad_rows, right="line", prose="what is wrong", empty="")
        if dry["lines"] - dry["runnable"] > min(len(bad), SHOWN_BAD_LINES):
            say(f"... and {dry['lines'] - dry['runnable'] - min(len(bad), SHOWN_BAD_LINES)} more lines.")

    show(dict(dry), as_json, render)


def _print_batch(batch: Mapping[str, Any]) -> None:
    ours = batch["allotd"]
    rows: list[tuple[str, object]] = [
        ("batch", batch["id"]),
        ("tenant", ours.get("tenant")),
        ("status", batch["status"]),
        ("created", moment(batch["created_at"])),
        ("ended", moment(_ended_at(batch))),
        *((name.replace("_", " "), count) for name, count in ours["states"].items() if count),
        ("samples", ours["samples"]),
        ("spent USD", usd(ours["spent_nanousd"])),
        ("held USD", usd(ours["held_nanousd"])),
        ("limit USD", usd(ours.get("limit_nanousd"))),
        *(("parked by", f"{parked['because']}: {parked['queries']} queries") for parked in ours["parked"]),
        *(("error", error["message"]) for error in ((batch.get("errors") or {}).get("data") or [])[:SHOWN_BAD_LINES]),
    ]
    print_table(("", " "), rows, prose=" ", empty="")


def _row(batch: Mapping[str, Any]) -> tuple[object, ...]:
    counts, ours = batch["request_counts"] or {}, batch.get("allotd") or {}
    return (
        batch["id"],
        ours.get("tenant"),
        batch["status"],
        f"{counts.get('completed', 0) + counts.get('failed', 0)}/{counts.get('total', 0)}",
        counts.get("failed"),
        usd(ours.get("spent_nanousd")),
        moment(batch["created_at"]),
        moment(_ended_at(batch)),
    )


def _ended_at(batch: Mapping[str, Any]) -> int | None:
    ends = (batch.get(f"{end}_at") for end in ("completed", "failed", "expired", "cancelled"))
    return next((at for at in ends if at is not None), None)
