"""Who may do what: the API key of every request under /v1 is checked before its body is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header, Request, Security
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.types import ASGIApp, Receive, Scope, Send

from scheduler.api.errors import reply, translate
from scheduler.api.rates import RequestRates
from scheduler.api.sessions import WithServices
from scheduler.database import reading
from scheduler.errors import Forbidden, InvalidRequest, NotFound
from scheduler.tenants import ADMIN, READ, SUBMIT, Identity, authenticate, find_tenant
from scheduler.wiring import Services

TENANT_HEADER = "Allotd-Tenant"

bearer = HTTPBearer(auto_error=False, scheme_name="ApiKey", description="An API key: `Authorization: Bearer KEY`.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Who asks, and for which tenant: a tenant for itself, an admin for the one it names or for all (None)."""

    identity: Identity
    tenant_id: str | None

    @property
    def own_tenant_id(self) -> str:
        """The one tenant this request is for. Raises InvalidRequest where an admin named none."""
        if self.tenant_id is None:
            raise InvalidRequest(
                f"An admin key belongs to no tenant; say whom this is for with the header `{TENANT_HEADER}: NAME` "
                "(`--tenant NAME` on the command line).",
                param=TENANT_HEADER,
            )
        return self.tenant_id

    def may_see(self, tenant_id: str) -> bool:
        """Whether that tenant's objects exist for this caller."""
        return self.tenant_id is None or self.tenant_id == tenant_id


class Authentication:
    """Middleware that finds out who asks, and refuses whom it does not know or who asks too often."""

    def __init__(self, app: ASGIApp, services: Services, rates: RequestRates) -> None:
        self.app = app
        self.services = services
        self.rates = rates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is public or known."""
        if scope["type"] == "http" and scope["path"].startswith("/v1/"):
            try:
                identity = await run_in_threadpool(self._admitted, Request(scope))
            except Exception as error:
                known = translate(error)
                if known is None:
                    raise
                await reply(known)(scope, receive, send)
                return
            scope.setdefault("state", {})["identity"] = identity
        await self.app(scope, receive, send)

    def _admitted(self, request: Request) -> Identity:
        identity = identify(self.services, request)
        if identity.tenant_id is not None and identity.requests_per_minute is not None:
            self.rates.count(identity.tenant_id, identity.requests_per_minute)
        return identity


def identify(services: Services, request: Request) -> Identity:
    """Whose key this request carries. Raises Unauthorized."""
    kind, _, key = request.headers.get("authorization", "").partition(" ")
    admin_key = services.settings.admin_key
    with reading(services.sessions) as session:
        return authenticate(
            session,
            key.strip() if kind.lower() == "bearer" else None,
            admin_key.get_secret_value() if admin_key is not None else None,
        )


def needed_scope(dependency: object) -> str | None:
    """The scope that a route's dependency asks for, if it is one of those that ask for one."""
    scope: str | None = getattr(dependency, "needed_scope", None)
    return scope


def _caller_with(scope: str) -> Callable[..., Caller]:
    def caller(
        request: Request,
        services: WithServices,
        _credentials: Annotated[HTTPAuthorizationCredentials | None, Security(bearer)],
        named: Annotated[
            str | None, Header(alias=TENANT_HEADER, description="For admin keys: the tenant (name or id) to act for.")
        ] = None,
    ) -> Caller:
        identity: Identity = request.state.identity
        if scope not in identity.scopes:
            raise Forbidden(f"This API key lacks the scope '{scope}'; use one that has it.")
        if named is None:
            return Caller(identity=identity, tenant_id=identity.tenant_id)
        return Caller(identity=identity, tenant_id=_named_tenant(services, identity, named))

    caller.needed_scope = scope  # type: ignore[attr-defined]  # for whoever asks which route needs what
    return caller


def _named_tenant(services: Services, identity: Identity, named: str) -> str:
    """The tenant an admin acts for; a tenant may name itself. Raises NotFound."""
    with reading(services.sessions) as session:
        tenant_id = find_tenant(session, named).id
    if not identity.is_admin and tenant_id != identity.tenant_id:
        raise NotFound(f"There is no tenant '{named}'.", param=TENANT_HEADER)
    return tenant_id


Submitter = Annotated[Caller, Depends(_caller_with(SUBMIT))]
Reader = Annotated[Caller, Depends(_caller_with(READ))]
Admin = Annotated[Caller, Depends(_caller_with(ADMIN))]
