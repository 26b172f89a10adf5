"""Lines are found in any cutting of a file's bytes, and the reader can stop and go on anywhere."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from scheduler.jsonlines import START_BYTES, Line, foreign_start, split_lines

LINE_MAX = 6
TEXTS = st.lists(st.sampled_from([b"a", b"abcdef", b"abcdefg", b"x" * 40, b" ", b"\t", b"\r", b"\n", b"\n\n"])).map(
    b"".join
)


def cut(text: bytes, places: list[int]) -> list[bytes]:
    """The text in chunks that end at these places."""
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[begin:end] for begin, end in pairwise(edges)]


def expected_lines(text: bytes) -> list[tuple[int, bytes | None]]:
    """What splitting the whole text at once gives."""
    numbered = enumerate(text.split(b"\n"), start=1)
    return [(number, each if len(each) <= LINE_MAX else None) for number, each in numbered if each.strip(b" \t\r")]


@given(text=TEXTS, places=st.lists(st.integers(0, 1000), max_size=6))
def test_lines_do_not_depend_on_where_the_chunks_end(text: bytes, places: list[int]) -> None:
    lines = split_lines(cut(text, places), LINE_MAX)

    assert [(line.number, line.content) for line in lines] == expected_lines(text)


@given(text=TEXTS, stop=st.integers(0, 20))
def test_reading_on_from_where_a_line_ended_gives_the_rest(text: bytes, stop: int) -> None:
    lines = list(split_lines([text], LINE_MAX))
    last = lines[min(stop, len(lines) - 1)] if lines else Line(0, None, 0)

    rest = list(split_lines([text[last.end :]], LINE_MAX, number=last.number, at=last.end))

    assert [line for line in lines if line.number <= last.number] + rest == lines


def test_a_line_too_long_is_passed_over_without_being_held() -> None:
    chunks = (b"x" * 1000 for _ in range(1000))

    [first, second] = split_lines([*chunks, b"\n{}"], 2000)

    assert first == Line(1, None, 1_000_001)
    assert second == Line(2, b"{}", 1_000_003)


def test_files_that_cannot_be_jsonl_are_known_by_their_first_bytes() -> None:
    assert foreign_start("{}".encode("utf-16")) == "The file is encoded in UTF-16; save it as UTF-8."
    assert foreign_start("{}".encode("utf-32")) == "The file is encoded in UTF-32; save it as UTF-8."
    assert "UTF-16 or UTF-32" in (foreign_start("{}".encode("utf-16-le")) or "")
    assert foreign_start(b"\x1f\x8b\x08") == "The file is compressed with gzip; send it unpacked."
    assert foreign_start(b'{"custom_id"') is None
    assert foreign_start(b"") is None


@given(places=st.lists(st.integers(0, 1000), max_size=6))
def test_a_line_that_is_too_long_is_known_by_its_start(places: list[int]) -> None:
    text = b'ok\n{"custom_id": "long", "x": "' + b"x" * 5000 + b'"}\nok'

    _, long, _ = split_lines(cut(text, places), LINE_MAX)

    assert long.content is None
    assert long.start.startswith(b'{"custom'[: len(long.start)])
    assert len(long.start) <= START_BYTES
