"""How commands find the API, keep secrets, and read what it sends."""

from __future__ import annotations

import stat
from pathlib import Path

import httpx
import pytest

from scheduler.cli.client import Api, Profile, Refused, Unreachable, is_local, load_profile, store_profile, write_secret
from scheduler.errors import InvalidRequest
from tests.unit.cli.conftest import Allotd


@pytest.fixture(autouse=True)
def _profile(allotd: Allotd) -> None:
    """Every test has a profile path of its own."""


def test_a_stored_profile_is_for_its_user_alone(tmp_path: Path) -> None:
    store_profile(Profile(url="http://127.0.0.1:8377", key="sk-allotd-x", llm_url="http://127.0.0.1:8000/v1"))

    assert stat.S_IMODE((tmp_path / "profile.json").stat().st_mode) == 0o600
    assert load_profile() == Profile(url="http://127.0.0.1:8377", key="sk-allotd-x", llm_url="http://127.0.0.1:8000/v1")


def test_a_secret_replaces_one_that_everybody_could_read(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("old")
    path.chmod(0o644)

    write_secret(path, "new")

    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_the_environment_comes_before_the_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    store_profile(Profile(url="http://127.0.0.1:1", key="sk-stored"))

    monkeypatch.setenv("ALLOTD_API_KEY", "sk-given")

    assert load_profile() == Profile(url="http://127.0.0.1:1", key="sk-given")


def test_a_stored_key_is_not_sent_to_another_server(monkeypatch: pytest.MonkeyPatch) -> None:
    store_profile(Profile(url="http://127.0.0.1:1", key="sk-stored"))

    monkeypatch.setenv("ALLOTD_URL", "https://elsewhere.example")

    assert load_profile() == Profile(url="https://elsewhere.example", key=None)


def test_a_profile_that_holds_no_object_is_named(tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_text("[]")

    with pytest.raises(InvalidRequest, match="holds no JSON object"):
        load_profile()


def test_a_list_is_read_page_by_page_up_to_its_limit() -> None:
    asked: list[dict[str, str]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(dict(request.url.params))
        start = int(request.url.params.get("after", "0"))
        count = int(request.url.params["limit"])
        return httpx.Response(200, json={"data": [{"id": str(start + i + 1)} for i in range(count)], "has_more": True})

    found = api(answer).pages("/v1/batches", limit=150)

    assert [item["id"] for item in found] == [str(i + 1) for i in range(150)]
    assert asked == [{"limit": "100"}, {"after": "100", "limit": "50"}]


def test_lines_end_at_newlines_only() -> None:
    lines = ['{"text": "a\u2028b"}', '{"text": "c\x85d"}', "last"]

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content="\n".join(lines).encode())

    assert list(api(answer).lines("/v1/files/x/content")) == lines


def test_a_file_that_is_refused_says_why() -> None:
    error = {"error": {"message": "There is no file 'x'.", "code": "not_found"}}

    with pytest.raises(Refused, match="There is no file 'x'"):
        list(api(lambda _: httpx.Response(404, json=error)).lines("/v1/files/x/content"))


def test_a_refusal_in_a_foreign_shape_is_told_by_its_status() -> None:
    with pytest.raises(Refused, match="502 Bad Gateway"):
        api(lambda _: httpx.Response(502, text="<html>")).get("/v1/caps")


def test_a_server_that_is_not_allotd_is_recognised() -> None:
    with pytest.raises(Unreachable, match="is not allotd"):
        api(lambda _: httpx.Response(200, text="<html>")).get("/v1/caps")


def test_silence_is_told_as_such() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("slow", request=request)

    with pytest.raises(Unreachable, match="does not answer in time"):
        api(answer).get("/v1/caps")


@pytest.mark.parametrize(
    ("url", "local"),
    [("http://127.0.0.1:1", True), ("http://[::1]:1", True), ("http://localhost", True), ("http://10.0.0.1", False)],
)
def test_no_proxy_stands_before_this_machine(url: str, local: bool) -> None:
    assert is_local(url) is local


def test_an_upload_streams_the_file_under_its_name(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_text("{}\n")
    seen: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.read())
        return httpx.Response(200, json={"id": "file-1"})

    assert api(answer).upload(file) == {"id": "file-1"}
    assert b'filename="lines.jsonl"' in seen[0]
    assert b"batch" in seen[0]


def api(answer: object) -> Api:
    assert callable(answer)
    return Api(httpx.Client(base_url="http://test", transport=httpx.MockTransport(answer)))
