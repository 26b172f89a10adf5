"""Tenants and keys: a key is shown once, stored as a digest, and stops working when it should."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from models.tables import ApiKey
from scheduler.errors import Conflict, InvalidRequest, NotFound, Unauthorized
from scheduler.tenants import (
    ALL_SCOPES,
    READ,
    SUBMIT,
    Identity,
    authenticate,
    create_key,
    create_tenant,
    disable_tenant,
    find_tenant,
    list_keys,
    revoke_key,
)
from tests.factories import NOW, new_sessions


@pytest.fixture
def session() -> Iterator[Session]:
    with new_sessions() as sessions, sessions() as session:
        yield session


def test_a_new_tenant_has_a_key_that_may_submit_and_read(session: Session) -> None:
    tenant, key = create_tenant(session, "acme", now=NOW)

    identity = authenticate(session, key.secret)

    assert identity == Identity(tenant_id=tenant.id, scopes=frozenset({SUBMIT, READ}))


def test_a_key_has_256_bits_and_is_kept_only_as_its_digest(session: Session) -> None:
    _, key = create_tenant(session, "acme", now=NOW)

    stored = session.scalars(select(ApiKey)).one()

    random_part = key.secret.removeprefix("sk-allotd-")
    assert len(random_part) == 43
    assert random_part not in f"{stored.id} {stored.digest} {stored.prefix} {stored.scopes}"
    assert key.secret.startswith(stored.prefix)


@pytest.mark.parametrize("key", [None, "", "sk-allotd-wrong", "x" * 10_000, "\xff"])
def test_whoever_is_not_known_is_refused(session: Session, key: str | None) -> None:
    create_tenant(session, "acme", now=NOW)

    with pytest.raises(Unauthorized):
        authenticate(session, key, "the admin's")


def test_the_configured_admin_key_may_do_everything(session: Session) -> None:
    identity = authenticate(session, "the admin's", "the admin's")

    assert identity == Identity(tenant_id=None, scopes=ALL_SCOPES)


def test_without_a_configured_admin_key_nobody_is_admin_by_sending_none(session: Session) -> None:
    with pytest.raises(Unauthorized):
        authenticate(session, "", "")


def test_an_admin_key_of_the_table_may_do_everything(session: Session) -> None:
    key = create_key(session, None, ["admin"], NOW)

    identity = authenticate(session, key.secret)

    assert identity.is_admin
    assert identity.scopes == ALL_SCOPES


def test_a_tenants_key_is_never_an_admins(session: Session) -> None:
    tenant, _ = create_tenant(session, "acme", now=NOW)

    with pytest.raises(InvalidRequest, match="scopes"):
        create_key(session, tenant.id, ["admin"], NOW)


def test_a_key_may_be_for_reading_only(session: Session) -> None:
    tenant, _ = create_tenant(session, "acme", now=NOW)

    key = create_key(session, tenant.id, [READ], NOW)

    assert authenticate(session, key.secret).scopes == {READ}


def test_a_revoked_key_is_refused_and_the_others_work(session: Session) -> None:
    tenant, first = create_tenant(session, "acme", now=NOW)
    second = create_key(session, tenant.id, [READ], NOW)

    revoke_key(session, tenant.id, first.row.id, NOW)

    assert authenticate(session, second.secret).tenant_id == tenant.id
    with pytest.raises(Unauthorized):
        authenticate(session, first.secret)


def test_a_key_cannot_be_revoked_through_another_tenant(session: Session) -> None:
    _, key = create_tenant(session, "acme", now=NOW)
    other, _ = create_tenant(session, "other", now=NOW)

    with pytest.raises(NotFound):
        revoke_key(session, other.id, key.row.id, NOW)


def test_a_disabled_tenants_keys_are_refused_with_the_reason(session: Session) -> None:
    _, key = create_tenant(session, "acme", now=NOW)

    disable_tenant(session, "acme", NOW)

    with pytest.raises(Unauthorized, match="disabled"):
        authenticate(session, key.secret)


def test_disabling_twice_keeps_the_first_instant(session: Session) -> None:
    create_tenant(session, "acme", now=NOW)

    first = disable_tenant(session, "acme", NOW).disabled_at
    second = disable_tenant(session, "acme", NOW.replace(year=2027)).disabled_at

    assert first == second == NOW


def test_a_tenant_is_found_by_its_name_and_by_its_id(session: Session) -> None:
    tenant, _ = create_tenant(session, "acme", now=NOW)

    found = {find_tenant(session, "acme").id, find_tenant(session, tenant.id).id}

    assert found == {tenant.id}


def test_a_name_is_given_once(session: Session) -> None:
    create_tenant(session, "acme", now=NOW)

    with pytest.raises(Conflict, match="acme"):
        create_tenant(session, "acme", now=NOW)


@pytest.mark.parametrize("name", ["", "a/b", "a b", "-a", "a" * 65, "tenant_0123", "naïve", "a\x00", "a\n"])
def test_a_name_that_could_not_stand_in_an_address_is_refused(session: Session, name: str) -> None:
    with pytest.raises(InvalidRequest):
        create_tenant(session, name, now=NOW)


@pytest.mark.parametrize("timezone", ["", "Mars/Olympus", "../etc/passwd", "America", "a\x00"])
def test_a_time_zone_that_is_none_is_refused(session: Session, timezone: str) -> None:
    with pytest.raises(InvalidRequest, match="time zone"):
        create_tenant(session, "acme", timezone=timezone, now=NOW)


@pytest.mark.parametrize("weight", [0.0, -1.0, 1e-9, 1e9, float("nan"), float("inf")])
def test_a_weight_that_would_starve_somebody_is_refused(session: Session, weight: float) -> None:
    with pytest.raises(InvalidRequest, match="weight"):
        create_tenant(session, "acme", weight=weight, now=NOW)


def test_keys_are_listed_with_the_revoked_ones(session: Session) -> None:
    tenant, first = create_tenant(session, "acme", now=NOW)
    revoke_key(session, tenant.id, first.row.id, NOW)

    [key] = list_keys(session, tenant.id)

    assert (key.id, key.revoked_at) == (first.row.id, NOW)
