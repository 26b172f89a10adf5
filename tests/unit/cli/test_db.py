"""`allotd db` works on ALLOTD_DATABASE_URL and says in one line what is wrong with it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

import migrations
from tests.services import free_port
from tests.unit.cli.conftest import Allotd


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    url = f"sqlite:///{tmp_path / 'allotd.db'}"
    monkeypatch.setenv("ALLOTD_DATABASE_URL", url)
    return url


def test_upgrade_check_and_downgrade_say_where_the_database_is(url: str, allotd: Allotd) -> None:
    newest = migrations.newest()

    before, up, after, down = (
        allotd("db", *words) for words in (["check"], ["upgrade"], ["check"], ["downgrade", "base"])
    )

    assert before.code == 1
    assert before.out == f"the database is at revision none, this version of allotd needs {newest}\n"
    assert up.out == f"The database is at revision {newest}.\n"
    assert (after.code, after.out) == (0, "The database is as this version needs it.\n")
    assert down.out == "The database is at revision none: it is empty.\n"


def test_json_tells_the_same(url: str, allotd: Allotd) -> None:
    assert allotd("db", "upgrade", "--json").json == {"revision": migrations.newest()}
    assert allotd("db", "check", "--json").json == {"differences": []}


def test_an_unknown_revision_is_one_line(url: str, allotd: Allotd) -> None:
    done = allotd("db", "upgrade", "9999")

    assert done.code == 1
    assert "9999" in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("url", ["nonsense", "foo://x", "postgresql+nothing://x"])
def test_a_url_that_is_none_is_one_line(allotd: Allotd, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("ALLOTD_DATABASE_URL", url)

    done = allotd("db", "check")

    assert done.code == 2
    assert done.err.startswith("allotd: ALLOTD_DATABASE_URL cannot be used")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("place", ["sqlite:////nowhere/at/all.db", "postgresql+psycopg://nobody@127.0.0.1:{port}/x"])
def test_a_database_that_cannot_be_reached_is_one_line(
    allotd: Allotd, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv("ALLOTD_DATABASE_URL", place.format(port=free_port()))

    done = allotd("db", "upgrade")

    assert done.code == 1
    assert done.err.startswith("allotd: The database refused: ")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("part", ["api", "daemon", "worker"])
def test_no_part_works_on_a_database_of_another_revision(url: str, allotd: Allotd, part: str) -> None:
    newest = migrations.newest()

    empty = allotd(part)
    migrations.upgrade(url, "0001")
    older = allotd(part)
    with sqlite3.connect(url.removeprefix("sqlite:///")) as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    newer = allotd(part)

    assert [done.code for done in (empty, older, newer)] == [1, 1, 1]
    assert empty.err == "allotd: The database holds no tables yet: run `allotd db upgrade`.\n"
    assert older.err.startswith(f"allotd: The database is at revision 0001, and this version of allotd needs {newest}:")
    assert older.err.endswith(": run `allotd db upgrade`.\n")
    assert f"`allotd db downgrade {newest}`" in newer.err
    assert newer.err.count("\n") == 1
