"""The database's schema, revision by revision."""

from migrations.run import check, current, downgrade, newest, upgrade

__all__ = ["check", "current", "downgrade", "newest", "upgrade"]
