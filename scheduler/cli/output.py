"""How commands speak: tables and sentences for people on stdout, JSON for programs, complaints on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from scheduler.core.pricing import format_usd

WIDTH_UNKNOWN = 200
"""Columns where there is no terminal: wide enough that no id in a log is broken in two."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def console() -> Console:
    """Where people read; plain text where nobody's terminal is."""
    return _console(sys.stdout)


def complaints() -> Console:
    """Where complaints and progress go, so that stdout holds results only."""
    return _console(sys.stderr)


def complain(message: str) -> None:
    """One complaint, wherever it can still be heard."""
    with suppress(OSError, ValueError):
        complaints().print(Text("allotd: ", style="bold red"), Text(message), sep="", soft_wrap=True)


def say(message: str) -> None:
    """One sentence on stdout; lost where nobody reads it any more."""
    with suppress(OSError, ValueError):
        console().print(Text(message), soft_wrap=True)


def mention(message: str) -> None:
    """One sentence beside the results, on stderr."""
    with suppress(OSError, ValueError):
        complaints().print(Text(message), soft_wrap=True)


def print_json(value: Any) -> None:
    """A value for programs."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def show(value: Any, as_json: bool, render: Callable[[], None]) -> None:
    """The value itself for programs, or what `render` prints of it for people."""
    if as_json:
        print_json(value)
    else:
        render()


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str, right: str = "") -> None:
    """A table, or the sentence `empty`. `right` names the columns of numbers, separated by spaces of two or more."""
    numeric = set(filter(None, right.split("  ")))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, justify="right" if heading in numeric else "left", overflow="fold")
    for row in rows:
        # Text, not str: a tenant's name may look like rich's markup.
        table.add_row(*(Text("-" if cell is None else str(cell)) for cell in row))
    if table.row_count:
        console().print(table)
    else:
        say(empty)


def usd(nanousd: int | None) -> str:
    """An amount for people; a dash where there is none."""
    return "-" if nanousd is None else format_usd(nanousd).removesuffix(" USD")


def moment(timestamp: float | str | None) -> str:
    """A Unix time or an ISO instant, in local time."""
    if timestamp is None:
        return "-"
    instant = (
        datetime.fromisoformat(timestamp) if isinstance(timestamp, str) else datetime.fromtimestamp(timestamp, tz=UTC)
    )
    return f"{instant.astimezone():%Y-%m-%d %H:%M:%S}"


def _console(stream: Any) -> Console:
    is_terminal = stream.isatty()
    return Console(file=stream, highlight=False, width=None if is_terminal else WIDTH_UNKNOWN)
