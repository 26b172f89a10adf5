"""The database's schema, revision by revision."""

from migrations.run import check, current, downgrade, knows, newest, upgrade

__all__ = ["check", "current", "downgrade", "knows", "newest", "upgrade"]
