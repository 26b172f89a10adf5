"""Webhooks lead to public addresses, and where they were checked to lead."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from scheduler.addresses import is_public, resolve
from scheduler.errors import InvalidRequest


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_a_public_address_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
        *("224.0.0.1", "255.255.255.255", "192.0.2.1", "::", "::1", "fe80::1%eth0", "fd00::1", "ff02::1"),
        *("::ffff:127.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::7f00:1", "2002:7f00:1::"),
    ],
)
def test_this_machines_and_its_networks_addresses_are_not(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9/hook",
        "http://[::1]/hook",
        "http://2130706433/hook",
        "http://0x7f.1/hook",
        "http://localhost/hook",
        "https://169.254.169.254/latest/meta-data",
    ],
)
def test_a_url_to_a_private_address_is_refused_however_it_is_written(url: str) -> None:
    with pytest.raises(InvalidRequest, match="no public address"):
        resolve(url, private_allowed=False)


def test_a_private_address_is_taken_where_the_operator_allows_it() -> None:
    target = resolve("http://127.0.0.1:9/hook?a=b", private_allowed=True)

    assert (target.address, target.port, target.connect_url) == ("127.0.0.1", 9, "http://127.0.0.1:9/hook?a=b")


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("ftp://8.8.8.8/", "http"),
        ("file:///etc/passwd", "http"),
        ("//8.8.8.8/", "http"),
        ("http:///hook", "host"),
        ("http://user:secret@8.8.8.8/", "password"),
        ("http://8.8.8.8:0/", "port"),
        ("http://8.8.8.8:99999/", "ort"),
        ("http://8.8.8.8/\r\nX: y", "ASCII"),
        ("http://b\u00fccher.example/", "ASCII"),
        ("http://[::1/", "read"),
        ("http://8.8.8.8/" + "a" * 3000, "longer"),
        ("http://name.invalid/", "looked up"),
    ],
)
def test_what_is_no_webhook_url_is_refused_with_the_reason(url: str, word: str) -> None:
    with pytest.raises(InvalidRequest, match=word):
        resolve(url, private_allowed=True)


def test_a_name_that_leads_to_a_public_and_a_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def both(_host: str, port: int, **_: Any) -> list[Any]:
        kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*kind, ("8.8.8.8", port)), (*kind, ("10.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", both)

    with pytest.raises(InvalidRequest, match=r"10\.0\.0\.1"):
        resolve("https://hooks.example/", private_allowed=False)


def test_a_target_is_connected_to_by_address_and_named_by_its_url(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = (socket.AF_INET6, socket.SOCK_STREAM, 6, "")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(*kind, ("2606:4700::1111", 443, 0, 0))])

    target = resolve("https://hooks.example/a", private_allowed=False)

    assert target.connect_url == "https://[2606:4700::1111]:443/a"
    assert (target.host_header, target.host) == ("hooks.example", "hooks.example")
