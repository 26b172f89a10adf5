"""How commands speak: tables and sentences for people on stdout, JSON for programs, complaints on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from scheduler.core.pricing import format_usd

WIDTH_UNKNOWN = 200
"""Columns where there is no terminal: wide enough that no id in a log is broken in two."""
GAP = 2
"""Blanks between the columns of a table."""
PROSE_WIDTH = 30
"""The narrowest column of sentences that can still be read."""

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


def print_table(
    headings: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str, right: str = "", prose: str = ""
) -> None:
    """A table, or the sentence `empty`; no number and no id in it is ever broken in two or cut.

    `right` names the columns of numbers, separated by spaces of two or more; `prose` the one of sentences, which alone
    is folded on a narrow terminal. Where the rest is still too wide, columns go on in a table below, after the first.
    """
    cells = [["-" if cell is None else str(cell) for cell in row] for row in rows]
    if not cells:
        say(empty)
        return
    widths = [max(cell_len(text) for text in column) for column in zip(headings, *cells, strict=True)]
    room = console().width if sys.stdout.isatty() else sum(widths) + GAP * len(widths)
    numeric = set(filter(None, right.split("  ")))
    for part in _parts(headings, widths, room, prose):
        table = Table(box=None, pad_edge=False, header_style="bold")
        for i in part:
            justify: JustifyMethod = "right" if headings[i] in numeric else "left"
            is_prose = headings[i] == prose
            table.add_column(headings[i], justify=justify, no_wrap=not is_prose, overflow="fold")
        for row in cells:
            # Text, not str: a tenant's name may look like rich's markup.
            table.add_row(*(Text(row[i]) for i in part))
        if part[1:] and part[1] != 1:
            say("")
        fixed = sum(widths[i] + GAP for i in part if headings[i] != prose)
        has_prose = any(headings[i] == prose for i in part)
        _console(sys.stdout, width=max(room, fixed + (PROSE_WIDTH if has_prose else 0))).print(table)


def _parts(headings: Sequence[str], widths: Sequence[int], room: int, prose: str) -> Iterator[list[int]]:
    """The columns in groups that fit side by side, each beginning with the first column."""
    part, used = [0], widths[0]
    for i in range(1, len(headings)):
        width = GAP + (min(widths[i], PROSE_WIDTH) if headings[i] == prose else widths[i])
        if used + width > room and len(part) > 1:
            yield part
            part, used = [0], widths[0]
        part.append(i)
        used += width
    yield part


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


def _console(stream: Any, width: int | None = None) -> Console:
    is_terminal = stream.isatty()
    return Console(file=stream, highlight=False, width=width or (None if is_terminal else WIDTH_UNKNOWN))
