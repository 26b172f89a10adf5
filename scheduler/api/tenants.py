"""/v1/tenants: who may spend, and their keys. For admins."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path
from pydantic import Field

from models.tables import ApiKey, Tenant
from scheduler import tenants
from scheduler.api.bodies import StrictRoute
from scheduler.api.errors import documented
from scheduler.api.security import Admin
from scheduler.api.sessions import Now, Reading, Writing
from scheduler.api.shapes import Body, NumberOnly, Page, Reply, ShortText, epoch, epoch_or_none

router = APIRouter(prefix="/v1/tenants", tags=["tenants"], route_class=StrictRoute)

Name = Annotated[str, Path(alias="tenant", description="The tenant's name or id.")]


QueuedMax = Annotated[
    Annotated[int, Field(ge=1, le=tenants.LIMITS["queued_max"]), NumberOnly] | None,
    Field(description="The most queries that may wait; null for no limit."),
]
RunningMax = Annotated[
    Annotated[int, Field(ge=1, le=tenants.LIMITS["running_max"]), NumberOnly] | None,
    Field(description="The most queries that may run at once; null for no limit."),
]
RequestsPerMinute = Annotated[
    Annotated[int, Field(ge=1, le=tenants.LIMITS["requests_per_minute"]), NumberOnly] | None,
    Field(description="The most requests within any 60 seconds; null for no limit."),
]


class NewTenantBody(Body):
    """A tenant to be made."""

    name: Annotated[ShortText, Field(json_schema_extra={"pattern": f"^(?!{tenants.ID_PREFIX}){tenants.NAME.pattern}$"})]
    timezone: Annotated[ShortText, Field(description="An IANA time zone, in which its caps turn.")] = "UTC"
    weight: Annotated[
        float,
        Field(
            description="Its share when tenants wait for the same model.",
            json_schema_extra={"minimum": tenants.WEIGHT_MIN, "maximum": tenants.WEIGHT_MAX},
        ),
    ] = 1.0
    queued_max: QueuedMax = None
    running_max: RunningMax = None
    requests_per_minute: RequestsPerMinute = None


class ChangedTenantBody(Body):
    """What is to change; what is left out stays, and a limit of null is lifted."""

    timezone: ShortText = Field(default_factory=str, description="An IANA time zone, in which its caps turn.")
    weight: float = Field(
        default_factory=float,
        description="Its share when tenants wait for the same model.",
        json_schema_extra={"minimum": tenants.WEIGHT_MIN, "maximum": tenants.WEIGHT_MAX},
    )
    queued_max: QueuedMax = None
    running_max: RunningMax = None
    requests_per_minute: RequestsPerMinute = None


class NewKeyBody(Body):
    """A key to be made."""

    scopes: Annotated[tuple[Literal["submit", "read"], ...], Field(min_length=1)] = ("submit", "read")


class KeyReply(Reply):
    """An API key without its secret."""

    id: str
    object: Literal["api_key"] = "api_key"
    prefix: str
    scopes: list[str]
    created_at: int
    revoked_at: int | None


class NewKeyReply(KeyReply):
    """An API key; `key` is shown this once."""

    key: str


class TenantReply(Reply):
    """A tenant."""

    id: str
    object: Literal["tenant"] = "tenant"
    name: str
    timezone: str
    weight: float
    queued_max: int | None
    running_max: int | None
    requests_per_minute: int | None
    created_at: int
    disabled_at: int | None


class NewTenantReply(TenantReply):
    """A tenant with its first key."""

    key: NewKeyReply


@router.post("", responses=documented(409))
def create_tenant(body: NewTenantBody, _caller: Admin, session: Writing, now: Now) -> NewTenantReply:
    """Make a tenant with a first key, which is shown in this reply only."""
    tenant, key = tenants.create_tenant(session, body.name, timezone=body.timezone, weight=body.weight, now=now)
    limits = {name: getattr(body, name) for name in tenants.LIMITS}
    tenant = tenants.change_tenant(session, tenant.id, limits, now)
    return NewTenantReply(**_tenant(tenant).model_dump(), key=_new_key(key))


@router.get("", responses=documented())
def list_tenants(_caller: Admin, session: Reading) -> Page[TenantReply]:
    """All tenants, oldest first."""
    return Page(data=[_tenant(tenant) for tenant in tenants.list_tenants(session)])


@router.get("/{tenant}", responses=documented())
def get_tenant(name: Name, _caller: Admin, session: Reading) -> TenantReply:
    """One tenant."""
    return _tenant(tenants.find_tenant(session, name))


@router.post("/{tenant}", responses=documented(409))
def change_tenant(name: Name, body: ChangedTenantBody, _caller: Admin, session: Writing, now: Now) -> TenantReply:
    """Change a tenant's limits, weight or time zone. A lower limit stops nothing that waits or runs already."""
    return _tenant(tenants.change_tenant(session, name, body.model_dump(exclude_unset=True), now))


@router.post("/{tenant}/enable", responses=documented(409))
def enable_tenant(name: Name, _caller: Admin, session: Writing) -> TenantReply:
    """Let a disabled tenant's keys work again, and what it has queued go on."""
    return _tenant(tenants.enable_tenant(session, name))


@router.post("/{tenant}/disable", responses=documented(409))
def disable_tenant(name: Name, _caller: Admin, session: Writing, now: Now) -> TenantReply:
    """Refuse the tenant's keys from now on; what it has queued waits."""
    return _tenant(tenants.disable_tenant(session, name, now))


@router.post("/{tenant}/keys", responses=documented(409))
def create_key(name: Name, _caller: Admin, session: Writing, now: Now, body: NewKeyBody | None = None) -> NewKeyReply:
    """Make another key, which is shown in this reply only."""
    tenant = tenants.find_tenant(session, name)
    return _new_key(tenants.create_key(session, tenant.id, (body or NewKeyBody()).scopes, now))


@router.get("/{tenant}/keys", responses=documented())
def list_keys(name: Name, _caller: Admin, session: Reading) -> Page[KeyReply]:
    """The tenant's keys, oldest first, without their secrets."""
    tenant = tenants.find_tenant(session, name)
    return Page(data=[_key(key) for key in tenants.list_keys(session, tenant.id)])


@router.delete("/{tenant}/keys/{key_id}", responses=documented(409))
def revoke_key(name: Name, key_id: str, _caller: Admin, session: Writing, now: Now) -> KeyReply:
    """Refuse a key from now on."""
    tenant = tenants.find_tenant(session, name)
    return _key(tenants.revoke_key(session, tenant.id, key_id, now))


def _tenant(tenant: Tenant) -> TenantReply:
    return TenantReply(
        id=tenant.id,
        name=tenant.name,
        timezone=tenant.timezone,
        weight=tenant.weight,
        queued_max=tenant.queued_max,
        running_max=tenant.running_max,
        requests_per_minute=tenant.requests_per_minute,
        created_at=epoch(tenant.created_at),
        disabled_at=epoch_or_none(tenant.disabled_at),
    )


def _key(key: ApiKey) -> KeyReply:
    return KeyReply(
        id=key.id,
        prefix=key.prefix,
        scopes=key.scopes.split(),
        created_at=epoch(key.created_at),
        revoked_at=epoch_or_none(key.revoked_at),
    )


def _new_key(key: tenants.NewKey) -> NewKeyReply:
    return NewKeyReply(**_key(key.row).model_dump(), key=key.secret)
