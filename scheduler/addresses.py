"""Which addresses a webhook may lead to: public ones, unless the operator allows those of its own network too."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from urllib.parse import SplitResult, urlsplit

from scheduler.errors import InvalidRequest

SCHEMES = {"http": 80, "https": 443}
URL_MAX = 2048
CARRIERS = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"), IPv6Network("::/96"))
"""IPv6 addresses that a gateway, or an old network stack, turns into the IPv4 address in their last four bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Where a URL leads. `address` was looked up and checked, and is what must be connected to: a second look-up of the
    same name may give another one."""

    url: str
    host: str
    """As the URL names it: for the Host header and the certificate."""
    address: str
    port: int

    @property
    def connect_url(self) -> str:
        """The URL with the checked address instead of the name."""
        parts = urlsplit(self.url)
        shown = f"[{self.address}]" if ":" in self.address else self.address
        return parts._replace(netloc=f"{shown}:{self.port}").geturl()

    @property
    def host_header(self) -> str:
        """Host and port as the URL has them."""
        return urlsplit(self.url).netloc


def resolve(url: str, *, private_allowed: bool) -> Target:
    """Look up where a URL leads, and check it. Waits for the name server.

    Raises InvalidRequest where it is no http(s) URL, its name is unknown, or any address of it is not public.
    """
    parts, port = parse(url)
    host = parts.hostname or ""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise InvalidRequest(f"The webhook's host {host!r} cannot be looked up: {error}.", param="url") from None
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for address in addresses:
        if not private_allowed and not is_public(address):
            raise InvalidRequest(
                f"The webhook's host {host!r} leads to {address}, which is no public address; set "
                "ALLOTD_WEBHOOKS_PRIVATE=true to allow that.",
                param="url",
            )
    return Target(url=url, host=host, address=addresses[0], port=port)


def parse(url: str) -> tuple[SplitResult, int]:
    """The URL's parts and its port. Raises InvalidRequest that says what is wrong with it."""
    if len(url) > URL_MAX:
        raise InvalidRequest(f"The webhook's URL is longer than {URL_MAX} characters.", param="url")
    if not url.isascii() or any(character <= " " or character == "\x7f" for character in url):
        raise InvalidRequest(
            "The webhook's URL holds what no URL may; write it in ASCII, percent-encoded.", param="url"
        )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InvalidRequest(f"The webhook's URL cannot be read: {error}.", param="url") from None
    if parts.scheme not in SCHEMES or not parts.hostname:
        raise InvalidRequest("The webhook's URL must begin with http:// or https:// and name a host.", param="url")
    if parts.username is not None or parts.password is not None:
        raise InvalidRequest(
            "The webhook's URL holds a user or password; leave them out, deliveries are signed.", param="url"
        )
    if port == 0:
        raise InvalidRequest("The webhook's URL names port 0, which is none.", param="url")
    return parts, port or SCHEMES[parts.scheme]


def is_public(address: str) -> bool:
    """Whether an address is anybody's on the internet: not this machine, its network, or something reserved."""
    found = ipaddress.ip_address(address.partition("%")[0])
    return all(each.is_global and not each.is_multicast for each in _meant(found))


def _meant(address: IPv4Address | IPv6Address) -> list[IPv4Address | IPv6Address]:
    """The address, or the IPv4 addresses that it carries."""
    if isinstance(address, IPv4Address):
        return [address]
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    carried: list[IPv4Address | IPv6Address] = [address]
    if any(address in network for network in CARRIERS):
        carried.append(IPv4Address(int(address) & 0xFFFFFFFF))
    if address.sixtofour is not None:
        carried.append(address.sixtofour)
    if address.teredo is not None:
        carried += address.teredo
    return carried
