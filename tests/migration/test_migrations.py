"""Migrations go up, down and up again on both databases, alone and together, and give what the tables say."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

import migrations
from models.tables import Table


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'allotd.db'}"
    new_database: Callable[[], str] = request.getfixturevalue("new_database")
    return new_database()


def test_upgrade_makes_every_table(url: str) -> None:
    migrations.upgrade(url)

    assert tables(url) == {*Table.metadata.tables, "alembic_version"}


def test_after_an_upgrade_nothing_differs_from_the_tables(url: str) -> None:
    migrations.upgrade(url)

    assert migrations.check(url) == []


def test_upgrading_twice_is_upgrading_once(url: str) -> None:
    migrations.upgrade(url)
    migrations.upgrade(url)

    assert migrations.current(url) == migrations.newest()


def test_a_downgrade_to_base_leaves_nothing_behind(url: str) -> None:
    migrations.upgrade(url)

    migrations.downgrade(url, "base")

    assert tables(url) == set()


def test_up_again_after_down_gives_the_same_schema(url: str) -> None:
    migrations.upgrade(url)
    before = schema(url)

    migrations.downgrade(url, "base")
    migrations.upgrade(url)

    assert schema(url) == before


def test_migrations_and_tables_make_the_same_schema_down_to_checks_and_foreign_keys(
    url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    other = f"sqlite:///{tmp_path / 'other.db'}"
    if url.startswith("postgresql"):
        other = request.getfixturevalue("new_database")()
    engine = sa.create_engine(other)
    Table.metadata.create_all(engine)
    engine.dispose()

    migrations.upgrade(url)

    assert {name: parts for name, parts in schema(url).items() if name != "alembic_version"} == schema(other)


def test_check_says_that_a_database_was_never_upgraded(url: str) -> None:
    assert migrations.check(url) == [
        f"the database is at revision none, this version of allotd needs {migrations.newest()}"
    ]


def test_check_names_a_missing_column(url: str) -> None:
    migrations.upgrade(url)
    execute(url, "ALTER TABLE labels DROP COLUMN comment")

    differences = migrations.check(url)

    assert len(differences) == 1
    assert "add column" in differences[0]
    assert "labels" in differences[0]
    assert "comment" in differences[0]


def test_check_names_a_column_nobody_expects(url: str) -> None:
    migrations.upgrade(url)
    execute(url, "ALTER TABLE labels ADD COLUMN mood TEXT")

    differences = migrations.check(url)

    assert len(differences) == 1
    assert "remove column" in differences[0]
    assert "mood" in differences[0]


def test_check_names_an_index_with_another_order(url: str) -> None:
    migrations.upgrade(url)
    execute(url, "DROP INDEX ix_queries_batch_id_state")
    execute(url, "CREATE INDEX ix_queries_batch_id_state ON queries (state, batch_id)")

    differences = migrations.check(url)

    assert differences
    assert all("ix_queries_batch_id_state" in difference for difference in differences)


def test_a_failed_upgrade_changes_nothing(url: str) -> None:
    execute(url, "CREATE TABLE waves (id INTEGER)")

    with pytest.raises(sa.exc.DBAPIError):
        migrations.upgrade(url)

    assert tables(url) == {"waves"}


def test_four_processes_upgrading_at_once_do_it_once(url: str) -> None:
    code = "import sys, migrations; migrations.upgrade(sys.argv[1])"
    processes = [
        subprocess.Popen([sys.executable, "-W", "error", "-c", code, url], stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]

    complaints = [process.communicate(timeout=120)[1] for process in processes]

    assert [process.returncode for process in processes] == [0, 0, 0, 0], complaints
    assert migrations.check(url) == []


def test_rows_survive_an_upgrade_that_has_nothing_to_do(url: str) -> None:
    migrations.upgrade(url)
    execute(
        url,
        "INSERT INTO tenants (id, name, timezone, weight, held_nanousd, spent_nanousd, created_at)"
        " VALUES ('tenant_1', 'acme', 'UTC', 1.0, 0, 0, '2026-01-01')",
    )

    migrations.upgrade(url)

    engine = sa.create_engine(url)
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT name FROM tenants")).scalars().all() == ["acme"]
    engine.dispose()


def tables(url: str) -> set[str]:
    """The names of the database's tables."""
    return set(schema(url))


def schema(url: str) -> dict[str, dict[str, object]]:
    """Everything the database itself says of each table."""
    engine = sa.create_engine(url)
    inspector = sa.inspect(engine)
    found: dict[str, dict[str, object]] = {
        name: {
            "columns": [{**column, "type": str(column["type"])} for column in inspector.get_columns(name)],
            "primary key": inspector.get_pk_constraint(name),
            "foreign keys": named(inspector.get_foreign_keys(name)),
            "unique": named(inspector.get_unique_constraints(name)),
            "checks": named(inspector.get_check_constraints(name)),
            "indexes": named(inspector.get_indexes(name)),
        }
        for name in inspector.get_table_names()
    }
    engine.dispose()
    return found


def named(things: object) -> list[str]:
    """Things the database lists in no fixed order, in one."""
    assert isinstance(things, list)
    return sorted(repr({key: shown(value) for key, value in thing.items()}) for thing in things)


def shown(value: object) -> object:
    """A value as text where its repr would name a place in memory."""
    if isinstance(value, dict):
        return {key: shown(part) for key, part in value.items()}
    return str(value) if isinstance(value, sa.TextClause) else value


def execute(url: str, statement: str) -> None:
    """Run one statement and commit it."""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text(statement))
    engine.dispose()
