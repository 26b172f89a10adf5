"""How commands change the database's schema, and what they say where that fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from alembic.util import CommandError
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

import migrations
from scheduler.errors import InvalidRequest, SchedulerError


class SchemaFailed(SchedulerError):
    """The database's schema could not be changed; nothing was."""


def upgrade(url: str, revision: str = "head") -> str | None:
    """Bring the database to a revision; returns the one it is at."""
    with _explained():
        migrations.upgrade(url, revision)
        return migrations.current(url)


def downgrade(url: str, revision: str) -> str | None:
    """Take the database back to a revision; returns the one it is at, None where it is empty."""
    with _explained():
        migrations.downgrade(url, revision)
        return migrations.current(url)


def check(url: str) -> list[str]:
    """How the database differs from what this version needs."""
    with _explained():
        return migrations.check(url)


def require(url: str) -> None:
    """Refuse to work on a database of another revision than this version's. Raises SchemaFailed.

    A server that cannot be reached just now says nothing of its schema; whoever works on it waits for it anyway.
    """
    try:
        with _explained():
            found = migrations.current(url)
    except SchemaFailed:
        if url.startswith("sqlite"):
            raise
        return
    newest = migrations.newest()
    if found is None:
        raise SchemaFailed("The database holds no tables yet: run `allotd db upgrade`.")
    if not migrations.knows(found):
        raise SchemaFailed(
            f"The database is at revision {found}, of a newer allotd than this one, which needs {newest}: install that "
            f"version here, or run `allotd db downgrade {newest}` with it."
        )
    if found != newest:
        raise SchemaFailed(
            f"The database is at revision {found}, and this version of allotd needs {newest}: run `allotd db upgrade`."
        )


@contextmanager
def _explained() -> Iterator[None]:
    """Say what is wrong with the database in one sentence."""
    try:
        yield
    except CommandError as error:
        raise SchemaFailed(
            f"The database cannot go there: {error}. A revision unknown here belongs to another version of allotd."
        ) from None
    except DBAPIError as error:
        raise SchemaFailed(f"The database refused: {' '.join(str(error.orig).split())}") from None
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
        raise InvalidRequest(f"ALLOTD_DATABASE_URL cannot be used: {error}") from None
