"""Tables: whole numbers and ids wherever they are printed, on terminals of any width and in pipes."""

from __future__ import annotations

import io

import pytest
from rich.text import Text

from scheduler.cli import output

ID = "batch_0123456789abcdef01234567"
HEADINGS = ("id", "tenant", "status", "done", "failed", "spent USD", "created")
ROW = (ID, "research-and-development", "in_progress", "12345/50000", 678, "1234.567890123", "2026-03-14 15:09:26")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def printed(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, columns: int, **options: str) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout", stream)
    rows = [ROW if "prose" not in options else (*ROW, "A long sentence that says at length what went wrong here.")]
    headings = HEADINGS if "prose" not in options else (*HEADINGS, options["prose"])
    output.print_table(headings, rows, right="failed  spent USD", empty="", **options)
    return Text.from_ansi(stream.getvalue()).plain.splitlines()


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_no_cell_is_broken_or_cut_on_a_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    lines = printed(monkeypatch, Terminal(), columns)

    for cell in ROW:
        assert any(str(cell) in line for line in lines), cell


def test_a_table_too_wide_for_a_terminal_goes_on_below_with_the_same_first_column(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = printed(monkeypatch, Terminal(), 80)

    assert sum(line.startswith(ID) for line in lines) > 1
    assert all(len(line.rstrip()) <= 80 for line in lines)


def test_sentences_are_folded_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = printed(monkeypatch, Terminal(), 80, prose="what is wrong")

    assert "what went wrong here." not in "\n".join(lines) or all(len(line.rstrip()) <= 80 for line in lines)


@pytest.mark.parametrize("columns", [40, 80])
def test_a_pipe_gets_one_line_per_row_however_long(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    lines = printed(monkeypatch, io.StringIO(), columns, prose="what is wrong")

    assert len(lines) == 2
    assert lines[1].split() == [word for cell in ROW for word in str(cell).split()] + (
        ["A", "long", "sentence", "that", "says", "at", "length", "what", "went", "wrong", "here."]
    )
