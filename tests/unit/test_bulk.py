"""Rows that go in past SQLAlchemy come out as those that go in through it."""

from __future__ import annotations

from datetime import timedelta, timezone
from typing import Any, cast

from sqlalchemy import Table, select

from models.tables import QueryRow
from scheduler.bulk import insert_rows
from tests.factories import NOW, add_batch, add_query, add_tenant, new_sessions

QUERIES = cast("Table", QueryRow.__table__)
OWN = {"id", "line", "custom_id"}


def test_rows_have_the_defaults_and_the_instants_that_any_other_row_has() -> None:
    with new_sessions() as sessions, sessions() as session:
        batch = add_batch(session, add_tenant(session))
        session.flush()
        usual = add_query(session, batch)
        session.flush()
        [values] = session.execute(select(QUERIES)).mappings().all()
        given: dict[str, Any] = {
            name: values[name] for name in ("batch_id", "tenant_id", "state", "model", "body_json", "created_at")
        }

        insert_rows(session, QUERIES, [{**given, "line": 7 + i, "custom_id": f"100% :of {i}"} for i in range(3)])

        rows = session.execute(select(QUERIES).where(QUERIES.c.id != usual.id).order_by(QUERIES.c.line)).mappings()
        for i, row in enumerate(rows):
            assert {key: row[key] for key in row if key not in OWN} == {k: values[k] for k in values if k not in OWN}
            assert (row["line"], row["custom_id"]) == (7 + i, f"100% :of {i}")


def test_an_instant_of_another_zone_is_kept_as_the_same_instant() -> None:
    with new_sessions() as sessions, sessions() as session:
        batch = add_batch(session, add_tenant(session))
        session.flush()
        local = NOW.astimezone(timezone(timedelta(hours=5)))
        row = {"batch_id": batch.id, "tenant_id": batch.tenant_id, "line": 1, "state": "queued", "created_at": local}

        insert_rows(session, QUERIES, [row])

        assert session.scalars(select(QueryRow.created_at)).one() == NOW


def test_no_rows_are_no_statement() -> None:
    with new_sessions() as sessions, sessions() as session:
        insert_rows(session, QUERIES, [])

        assert session.scalars(select(QueryRow)).all() == []
