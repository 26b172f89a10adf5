"""`allotd db`: the schema of the database at ALLOTD_DATABASE_URL."""

# ruff: noqa: PLC0415 (what knows databases takes a second to import, and most commands need none of it)

from __future__ import annotations

from typing import Annotated

import typer

from scheduler.cli.output import AsJson, say, show

app = typer.Typer(help="The schema of the database at ALLOTD_DATABASE_URL.", no_args_is_help=True)


@app.command()
def upgrade(
    revision: Annotated[str, typer.Argument(help="How far; to the newest by default.")] = "head",
    as_json: AsJson = False,
) -> None:
    """Bring the database up to date."""
    from scheduler.cli import schema

    found = schema.upgrade(_url(), revision)
    show({"revision": found}, as_json, lambda: say(f"The database is at revision {found}."))


@app.command()
def downgrade(
    revision: Annotated[str, typer.Argument(help="Back to this one; `base` removes every table.")],
    as_json: AsJson = False,
) -> None:
    """Take the database back to an earlier revision. What newer columns and tables hold is lost."""
    from scheduler.cli import schema

    found = schema.downgrade(_url(), revision)
    show({"revision": found}, as_json, lambda: say(f"The database is at revision {found or 'none: it is empty'}."))


@app.command()
def check(as_json: AsJson = False) -> None:
    """Say how the database differs from what this version needs; exit code 1 where it does."""
    from scheduler.cli import schema

    differences = schema.check(_url())
    lines = differences or ["The database is as this version needs it."]
    show({"differences": differences}, as_json, lambda: say("\n".join(lines)))
    if differences:
        raise typer.Exit(1)


def _url() -> str:
    from scheduler.settings import Settings

    return Settings.from_env().database_url
