"""Broken files on PostgreSQL, which refuses in text what SQLite takes: each line is accounted for there, too."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable

import pytest

from tests import mutations
from tests.factories import add_tenant, new_sessions

FILES = int(os.environ.get("FUZZ_FILES", "200"))


def test_every_line_of_hundreds_of_broken_files_is_accounted_for(
    new_database: Callable[[], str], capsys: pytest.CaptureFixture[str]
) -> None:
    total = Counter[str]()
    with new_sessions(new_database()) as sessions:
        with sessions.begin() as session:
            tenant_id = add_tenant(session).id

        for name, content in mutations.files(seed=2, count=FILES):
            try:
                total += mutations.account(sessions, tenant_id, content)
            except Exception as error:
                raise AssertionError(f"{name}: {content!r}") from error

    with capsys.disabled():
        print(f"\n{FILES} broken files on PostgreSQL, seed 2: {mutations.summary(total)}")
    assert total["lines"] == sum(total[end] for end in mutations.ENDS)
