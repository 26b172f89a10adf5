"""How commands reach the API: the address and key they use, and what its refusals become."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from scheduler.errors import InvalidRequest, SchedulerError

TIMEOUT = httpx.Timeout(60.0, connect=5.0)
PAGE = 100
TENANT_HEADER = "Allotd-Tenant"


class Refused(SchedulerError):
    """The server refused the request."""


class Unreachable(SchedulerError):
    """No allotd answers; start one with `allotd up`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """Where the API is, and the key to it; `llm_url` is the model server that `allotd up` started."""

    url: str
    key: str | None = None
    llm_url: str | None = None


def profile_path() -> Path:
    """Where `allotd up` leaves its address and key for the commands."""
    if given := os.environ.get("ALLOTD_PROFILE"):
        return Path(given)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "allotd" / "profile.json"


def load_profile() -> Profile:
    """The profile, with ALLOTD_URL and ALLOTD_API_KEY before what the file says."""
    stored = _stored_profile()
    url, key = os.environ.get("ALLOTD_URL"), os.environ.get("ALLOTD_API_KEY")
    if url and url != stored.get("url"):
        stored = {}  # its key belongs to another server
    url = url or stored.get("url")
    if not url:
        raise InvalidRequest("No server is known; start one with `allotd up`, or set ALLOTD_URL and ALLOTD_API_KEY.")
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise InvalidRequest(f"The server's address {url!r} is no http:// or https:// URL; correct ALLOTD_URL.")
    return Profile(url=url.rstrip("/"), key=key or stored.get("key"), llm_url=stored.get("llm_url"))


def store_profile(profile: Profile) -> None:
    """Write the profile for this user's eyes only."""
    fields = {"url": profile.url, "key": profile.key, "llm_url": profile.llm_url}
    write_secret(profile_path(), json.dumps(fields, indent=2) + "\n")


def write_secret(path: Path, text: str) -> None:
    """Replace a file by one that only this user can read, at once and as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f"{path.name}.{os.getpid()}.new")
    with open(draft, "w", opener=lambda name, flags: os.open(name, flags, 0o600), encoding="utf-8") as file:
        file.write(text)
    draft.replace(path)


@contextmanager
def connect(profile: Profile | None = None, *, tenant: str | None = None) -> Iterator[Api]:
    """The API, as the profile says; an admin acts for `tenant`."""
    profile = profile or load_profile()
    headers = {"Authorization": f"Bearer {profile.key}"} if profile.key else {}
    if tenant is not None:
        if not (tenant.isascii() and tenant.isprintable()):
            raise InvalidRequest(
                f"There is no tenant {tenant!r}: names are letters (a-z, A-Z), digits, dots, dashes, underscores."
            )
        headers[TENANT_HEADER] = tenant
    with httpx.Client(
        base_url=profile.url, headers=headers, timeout=TIMEOUT, trust_env=not is_local(profile.url)
    ) as client:
        yield Api(client)


class Api:
    """The API's answers as plain dictionaries. Refusals are raised as Refused, silence as Unreachable."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def get(self, path: str, **params: Any) -> dict[str, Any]:
        """The object at a path; parameters that are None are left out."""
        return self._json("GET", path, params=_given(params))

    def post(
        self, path: str, body: Mapping[str, Any] | None = None, *, cleared: Sequence[str] = (), **options: Any
    ) -> dict[str, Any]:
        """Create or act; fields that are None are left out, those named in `cleared` are sent as null."""
        return self._json("POST", path, json=_given(body or {}) | dict.fromkeys(cleared), **options)

    def change(self, path: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Change an object; a field that is None is sent as null."""
        return self._json("POST", path, json=dict(changes))

    def send(self, path: str, content: Any, content_type: str, **params: Any) -> dict[str, Any]:
        """Post raw bytes."""
        return self._json(
            "POST", path, content=content, params=_given(params), headers={"Content-Type": content_type}, timeout=None
        )

    def upload(self, path: Path) -> dict[str, Any]:
        """Upload a file for a batch."""
        with path.open("rb") as file:
            files = {"file": (path.name, file, "application/jsonl")}
            return self._json("POST", "/v1/files", files=files, data={"purpose": "batch"}, timeout=None)

    def delete(self, path: str) -> dict[str, Any]:
        """Delete."""
        return self._json("DELETE", path)

    def pages(self, path: str, limit: int | None = None, **params: Any) -> list[dict[str, Any]]:
        """Everything a list holds, up to `limit`, page after page."""
        found: list[dict[str, Any]] = []
        after: str | None = None
        while True:
            wanted = None if limit is None else min(PAGE, limit - len(found))
            page = self.get(path, after=after, limit=wanted, **params)
            found.extend(page["data"])
            if not page.get("has_more") or not page["data"] or (limit is not None and len(found) >= limit):
                return found
            after = page["data"][-1]["id"]

    def lines(self, path: str) -> Iterator[str]:
        """The lines of a file, as they come."""
        with self._stream(path) as response:
            yield from _lines(response.iter_text())

    def digest(self, path: str) -> str:
        """The SHA-256 of a file."""
        with self._stream(path) as response:
            return sha256_of(response.iter_bytes())

    @contextmanager
    def _stream(self, path: str) -> Iterator[httpx.Response]:
        with _translated(self._client), self._client.stream("GET", path, timeout=None) as response:
            if response.is_error:
                response.read()
                raise _refusal(response)
            yield response

    def _json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        with _translated(self._client):
            try:
                request = self._client.build_request(method, path, **options)
            except UnicodeError as error:
                raise InvalidRequest(f"Something that was given is no text ({error}); write it in UTF-8.") from None
            except ValueError as error:  # JSON knows no nan and no inf
                raise InvalidRequest(f"A number that was given is none ({error}); write a finite one.") from None
            response = self._client.send(request)
        if response.is_error:
            raise _refusal(response)
        try:
            value: dict[str, Any] = response.json()
        except ValueError:
            raise Unreachable(f"What answers at {self._client.base_url} is not allotd; check ALLOTD_URL.") from None
        return value


def part(name: str) -> str:
    """A name as one part of a path."""
    return quote(name, safe="")


def sha256_of(chunks: Iterable[bytes]) -> str:
    """The SHA-256 of bytes that come in pieces."""
    hasher = hashlib.sha256()
    for chunk in chunks:
        hasher.update(chunk)
    return hasher.hexdigest()


def is_local(url: str) -> bool:
    """Whether a URL stays on this machine, where no proxy belongs in between."""
    return urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")


@contextmanager
def _translated(client: httpx.Client) -> Iterator[None]:
    url = str(client.base_url).rstrip("/")
    try:
        yield
    except httpx.TimeoutException:
        raise Unreachable(f"{url} does not answer in time; try again, or look at its logs.") from None
    except httpx.TransportError as error:
        raise Unreachable(
            f"No allotd answers at {url} ({error}); start one with `allotd up`, or set ALLOTD_URL."
        ) from None


def _refusal(response: httpx.Response) -> SchedulerError:
    try:
        error = response.json()["error"]
        message, code = str(error["message"]), error.get("code")
    except (ValueError, KeyError, TypeError):
        message, code = f"The server answered {response.status_code} {response.reason_phrase}.", None
    return Refused(message, status=response.status_code, code=code)


def _stored_profile() -> dict[str, Any]:
    path = profile_path()
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"The profile {path} cannot be read ({error}); remove it or correct it.") from None
    if not isinstance(stored, dict):
        raise InvalidRequest(f"The profile {path} holds no JSON object; remove it or correct it.")
    return stored


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _lines(chunks: Iterator[str]) -> Iterator[str]:
    # str.splitlines would also split at characters that JSON strings may hold, such as U+2028.
    rest = ""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split("\n")
        yield from whole
    if rest:
        yield rest
