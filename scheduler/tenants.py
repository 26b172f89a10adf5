"""Who is asking: tenants, their API keys, and what a key may do."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any
from zoneinfo import available_timezones

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from models.tables import ApiKey, Tenant
from scheduler.caps import change_timezone
from scheduler.errors import Conflict, InvalidRequest, NotFound, Unauthorized

SUBMIT, READ, ADMIN = "submit", "read", "admin"
TENANT_SCOPES = frozenset({SUBMIT, READ})
ALL_SCOPES = TENANT_SCOPES | {ADMIN}

KEY_PREFIX = "sk-allotd-"
KEY_BYTES = 32
"""256 bits of chance, which nobody guesses, so that a plain SHA-256 is enough to store."""
PREFIX_SHOWN = len(KEY_PREFIX) + 6
"""Characters of a key that lists show: enough to tell keys apart, far too few to guess the rest."""

ID_PREFIX = "tenant_"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LIMITS = {"queued_max": 10_000_000, "running_max": 100_000, "requests_per_minute": 100_000}
"""The most that each limit of a tenant may be set to; more is no limit."""
WEIGHT_MIN, WEIGHT_MAX = 0.01, 100.0
"""Shares further apart would let one tenant wait for ten thousand turns of another."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """Whom a key speaks for and what it may do; an admin's key speaks for no tenant."""

    tenant_id: str | None
    scopes: frozenset[str]
    requests_per_minute: int | None = None

    @property
    def is_admin(self) -> bool:
        """Whether it may do everything, for everybody."""
        return ADMIN in self.scopes


@dataclass(frozen=True, kw_only=True, slots=True)
class NewKey:
    """A key as it is shown once: `secret` is stored nowhere."""

    row: ApiKey
    secret: str


def create_tenant(
    session: Session, name: str, *, timezone: str = "UTC", weight: float = 1.0, now: datetime
) -> tuple[Tenant, NewKey]:
    """A new tenant with a first key that may submit and read.

    Raises InvalidRequest for a name, time zone or weight that cannot be, Conflict for a name that is taken.
    """
    _check_name(name)
    _check_timezone(timezone)
    _check_weight(weight)
    if session.scalars(select(Tenant.id).where(Tenant.name == name)).first() is not None:
        raise Conflict(f"There is a tenant '{name}' already; choose another name.", param="name")
    tenant = Tenant(
        id=f"{ID_PREFIX}{secrets.token_hex(6)}", name=name, timezone=timezone, weight=weight, created_at=now
    )
    session.add(tenant)
    session.flush()
    return tenant, create_key(session, tenant.id, TENANT_SCOPES, now)


def list_tenants(session: Session) -> Sequence[Tenant]:
    """All tenants, oldest first, the disabled ones too."""
    return session.scalars(select(Tenant).order_by(Tenant.created_at, Tenant.id)).all()


def find_tenant(session: Session, name_or_id: str) -> Tenant:
    """The tenant of that name or id. Raises NotFound."""
    tenant = session.scalars(
        select(Tenant).where(or_(Tenant.id == name_or_id, Tenant.name == name_or_id)).limit(1)
    ).first()
    if tenant is None:
        raise NotFound(f"There is no tenant '{name_or_id}'.", param="tenant")
    return tenant


def disable_tenant(session: Session, name_or_id: str, now: datetime) -> Tenant:
    """Refuse a tenant's keys from now on; its waiting queries stay where they are. Doing it twice is doing it once."""
    tenant = find_tenant(session, name_or_id)
    # Its purse is written by others at the same time, so only this column is touched.
    session.execute(update(Tenant).where(Tenant.id == tenant.id, Tenant.disabled_at.is_(None)).values(disabled_at=now))
    session.refresh(tenant)
    return tenant


def enable_tenant(session: Session, name_or_id: str) -> Tenant:
    """Let a disabled tenant's keys work again, and its waiting queries go on. Doing it twice is doing it once."""
    tenant = find_tenant(session, name_or_id)
    session.execute(update(Tenant).where(Tenant.id == tenant.id).values(disabled_at=None))
    session.refresh(tenant)
    return tenant


def change_tenant(session: Session, name_or_id: str, changes: Mapping[str, Any], now: datetime) -> Tenant:
    """Change some of a tenant's `timezone`, `weight`, `queued_max`, `running_max` and `requests_per_minute`.

    A limit that is None is lifted; a lower one stops nothing that waits or runs already. With another time zone caps
    turn at its midnight, see `scheduler.caps.change_timezone`. Raises NotFound, or InvalidRequest for what cannot be.
    """
    tenant = find_tenant(session, name_or_id)
    unknown = sorted(changes.keys() - {"timezone", "weight", *LIMITS})
    assert not unknown, f"{unknown} are no settings of tenants"
    _check_timezone(changes.get("timezone", tenant.timezone))
    _check_weight(changes.get("weight", tenant.weight))
    for name, most in LIMITS.items():
        _check_limit(name, changes.get(name), most)
    if changes.get("timezone", tenant.timezone) != tenant.timezone:
        change_timezone(session, tenant, changes["timezone"], now)
    others = {name: value for name, value in changes.items() if name != "timezone"}
    if others:
        session.execute(update(Tenant).where(Tenant.id == tenant.id).values(**others))
        session.refresh(tenant)
    return tenant


def create_key(session: Session, tenant_id: str | None, scopes: Collection[str], now: datetime) -> NewKey:
    """A new key of a tenant, or an admin's where no tenant is named.

    Raises InvalidRequest for a scope it cannot have.
    """
    possible = TENANT_SCOPES if tenant_id is not None else ALL_SCOPES
    unknown = sorted(set(scopes) - possible)
    if unknown or not scopes:
        raise InvalidRequest(
            f"A key may have the scopes {' and '.join(sorted(possible))}; {unknown or 'none at all'} cannot be given.",
            param="scopes",
        )
    secret = KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)
    row = ApiKey(
        id=f"key_{secrets.token_hex(6)}",
        tenant_id=tenant_id,
        digest=digest(secret),
        prefix=secret[:PREFIX_SHOWN],
        scopes=" ".join(sorted(scopes)),
        created_at=now,
    )
    session.add(row)
    session.flush()
    return NewKey(row=row, secret=secret)


def list_keys(session: Session, tenant_id: str | None) -> Sequence[ApiKey]:
    """A tenant's keys, oldest first, the revoked ones too; the admin keys where no tenant is named."""
    return session.scalars(
        select(ApiKey).where(ApiKey.tenant_id == tenant_id).order_by(ApiKey.created_at, ApiKey.id)
    ).all()


def revoke_key(session: Session, tenant_id: str | None, key_id: str, now: datetime) -> ApiKey:
    """Refuse a key from now on. Doing it twice is doing it once. Raises NotFound for another tenant's key."""
    key = session.scalars(select(ApiKey).where(ApiKey.id == key_id, ApiKey.tenant_id == tenant_id)).first()
    if key is None:
        raise NotFound(f"There is no key '{key_id}'.", param="key_id")
    key.revoked_at = key.revoked_at or now
    session.flush()
    return key


def authenticate(session: Session, key: str | None, admin_key: str | None = None) -> Identity:
    """Whom a key speaks for. `admin_key` is the configured one, which is in no table. Raises Unauthorized.

    Keys are found by their digest, so that how long the look-up takes says nothing about the key.
    """
    if not key:
        raise Unauthorized()
    presented = digest(key)
    if admin_key and hmac.compare_digest(presented, digest(admin_key)):
        return Identity(tenant_id=None, scopes=ALL_SCOPES)
    found = session.execute(
        select(
            ApiKey.digest,
            ApiKey.tenant_id,
            ApiKey.scopes,
            ApiKey.revoked_at,
            Tenant.disabled_at,
            Tenant.requests_per_minute,
        )
        .outerjoin(Tenant, Tenant.id == ApiKey.tenant_id)
        .where(ApiKey.digest == presented)
    ).first()
    if found is None or not hmac.compare_digest(found.digest, presented) or found.revoked_at is not None:
        raise Unauthorized()
    if found.disabled_at is not None:
        raise Unauthorized("This API key's tenant is disabled; ask whoever runs this server.")
    scopes = frozenset(found.scopes.split())
    return Identity(
        tenant_id=found.tenant_id,
        scopes=ALL_SCOPES if ADMIN in scopes else scopes,
        requests_per_minute=found.requests_per_minute,
    )


def digest(key: str) -> str:
    """What is stored of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name) or name.startswith(ID_PREFIX):
        raise InvalidRequest(
            f"The name {name[:80]!r} cannot be a tenant's: use 1 to 64 letters (a to z, A to Z: it stands in "
            "HTTP headers), digits, dots, dashes and underscores, beginning with a letter or digit, "
            f"and not with '{ID_PREFIX}'.",
            param="name",
        )


def _check_timezone(timezone: str) -> None:
    if timezone not in _timezones():
        raise InvalidRequest(f"There is no time zone {timezone[:80]!r}; write it like Europe/Berlin.", param="timezone")


def _check_weight(weight: float) -> None:
    if not WEIGHT_MIN <= weight <= WEIGHT_MAX:
        raise InvalidRequest(f"The weight must be between {WEIGHT_MIN} and {WEIGHT_MAX:g}.", param="weight")


def _check_limit(name: str, value: int | None, most: int) -> None:
    if value is not None and not 1 <= value <= most:
        raise InvalidRequest(
            f"{name} must be between 1 and {most}, or null for no limit; to stop a tenant altogether, disable it.",
            param=name,
        )


@cache
def _timezones() -> frozenset[str]:
    return frozenset(available_timezones())
