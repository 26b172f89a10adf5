"""Queries that two models on two servers may answer, through OpenAI's client: a cheap one first, a better one where it
fails."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL, Popen

import pytest
from httpx import Client
from openai import OpenAI

from scheduler.processes import wait_until
from tests.acceptance.conftest import CALM, READY_TIMEOUT_S, running
from tests.acceptance.test_openai_client import ask, content, counts, submit, wait_for
from tests.llm import LlmServer
from tests.services import Valkey, free_port

CHEAP = "cheap"
"""A model that hardly ever succeeds, and costs a twentieth."""


@contextmanager
def fake_server(**options: object) -> Iterator[str]:
    """A fake model's server; its URL."""
    port = free_port()
    command = [sys.executable, "-m", "workers.engines.fake_server", "--port", str(port), "--options"]
    process = Popen([*command, json.dumps(options)], stdout=DEVNULL, stderr=DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


def known_models(admin: Client) -> list[str]:
    return [model["id"] for model in admin.get("/v1/models").json()["data"]]


@pytest.mark.parametrize("kind", ["fake", pytest.param("vllm", marks=pytest.mark.vllm)])
def test_what_the_cheap_model_fails_at_is_asked_of_the_other(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, valkey: Valkey
) -> None:
    hopeless = {"models": [CHEAP], "success_alpha": 0.01, "success_beta": 100.0}
    with (
        fake_server(**hopeless) as cheap_url,
        fake_server(success_alpha=100.0, success_beta=0.01, tokens_median=6.0) as fake_url,
    ):
        model, url = "fake", fake_url
        if kind == "vllm":
            llm: LlmServer = request.getfixturevalue("llm")
            model, url = llm.name, llm.url
        with running(tmp_path, valkey.url, model, engine="vllm", llm_url=f"{cheap_url},{url}", **CALM) as stack:
            with stack.admin() as admin:
                price = {"model": CHEAP, "prompt_usd_per_mtok": "0.002", "completion_usd_per_mtok": "0.01"}
                admin.post("/v1/prices", json=price).raise_for_status()
                assert wait_until(lambda: CHEAP in known_models(admin), READY_TIMEOUT_S), "its server is up late"
            tenant = stack.new_tenant()
            client: OpenAI = stack.client(tenant["key"]["key"])

            batch = wait_for(client, submit(client, [ask(CHEAP, n) for n in range(6)], {"models": model}).id)

            lines = [line["response"]["body"] for line in content(client, batch.output_file_id)]
            with stack.admin() as admin:
                report = admin.get("/v1/spend", params={"by": "model", "tenant": tenant["name"]}).json()

    assert (batch.status, counts(batch)) == ("completed", (6, 6, 0))
    assert Counter(body["model"] for body in lines) == {model: 6}
    assert all(body["allotd"]["samples"] > 3 for body in lines)  # three of the cheap model, in vain
    tokens = {group["key"]: group["completion_tokens"] for group in report["groups"]}
    assert tokens.keys() == {CHEAP, model}
    assert 0 < tokens[CHEAP] == sum(body["usage"]["completion_tokens"] for body in lines) - tokens[model]
    if kind == "fake":
        assert [body["allotd"]["stop_reason"] for body in lines] == ["verified"] * 6
