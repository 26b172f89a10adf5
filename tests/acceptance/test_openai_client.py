"""OpenAI's own Python client, unmodified, against a whole allotd: on the fake engine, and on real vLLM."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterable
from typing import Any, Final

import httpx
import openai
import pytest
from openai import OpenAI
from openai.types import Batch

from tests.acceptance.conftest import Stack

FINISHED = {"completed", "failed", "expired", "cancelled"}
TIMEOUT_S = 240.0
ENDPOINT: Final = "/v1/chat/completions"


def ask(model: str, number: int, **allotd: Any) -> dict[str, Any]:
    """A line that asks for a sum, with a verifier that knows it."""
    return {
        "custom_id": f"sum-{number}",
        "method": "POST",
        "url": ENDPOINT,
        "body": {
            "model": model,
            "messages": [{"role": "user", "content": f"What is {number} + {number + 3}? Answer with the number."}],
            "max_tokens": 24,
            "allotd": {"verifier": "numeric", "reference": str(2 * number + 3), "samples_max": 3, **allotd},
        },
    }


def upload(client: OpenAI, lines: Iterable[Any]) -> str:
    """Upload lines; what is text already goes as it is. Returns the file's id."""
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    return client.files.create(file=("lines.jsonl", io.BytesIO(text.encode())), purpose="batch").id


def submit(client: OpenAI, lines: Iterable[Any], metadata: dict[str, str] | None = None) -> Batch:
    """Upload lines and open a batch on them."""
    return client.batches.create(
        input_file_id=upload(client, lines), endpoint=ENDPOINT, completion_window="24h", metadata=metadata
    )


def wait_for(client: OpenAI, batch_id: str) -> Batch:
    """Poll until the batch is over."""
    deadline = time.monotonic() + TIMEOUT_S
    while (batch := client.batches.retrieve(batch_id)).status not in FINISHED:
        assert time.monotonic() < deadline, batch.to_json()
        time.sleep(0.2)
    return batch


def content(client: OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    """The lines of an output or error file; none where a batch that is over shows no file."""
    if file_id is None:
        return []
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()]


def counts(batch: Batch) -> tuple[int, int, int]:
    """The lines in all, with an answer, and without one."""
    assert batch.request_counts is not None
    return batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed


def test_a_batch_goes_in_and_every_line_comes_out_answered_or_with_its_reason(stack: Stack, client: OpenAI) -> None:
    good = [ask(stack.model, number) for number in range(8)]
    bad = ["this is no JSON", {**ask("no-such-model", 90), "custom_id": "unknown-model"}, good[0]]

    batch = wait_for(client, submit(client, [*good, *bad], {"task": "sums"}).id)

    answers, errors = content(client, batch.output_file_id), content(client, batch.error_file_id)
    assert batch.status == "completed"
    assert batch.metadata == {"task": "sums"}
    assert counts(batch) == (11, 8, 3)
    assert {line["custom_id"] for line in answers} == {line["custom_id"] for line in good}
    assert {line["error"]["code"] for line in errors} == {"invalid_json", "model_not_found", "duplicate_custom_id"}
    assert all(line["response"]["body"]["usage"]["completion_tokens"] > 0 for line in answers)


def test_published_rules_are_strategies_that_a_line_can_name_with_their_setting(stack: Stack, client: OpenAI) -> None:
    named = [
        "asc",
        "asc@0.8",
        "asc-dirichlet",
        "esc@2",
        "its-hub",
        "bandit@0.4",
        "dsc",
        "damani@2",
        "self_consistency@0.7",
    ]
    lines = [ask(stack.model, number, strategy=strategy) for number, strategy in enumerate(named)]
    unknown = {**ask(stack.model, 90, strategy="snell"), "custom_id": "without-history"}

    batch = wait_for(client, submit(client, [*lines, unknown]).id)

    answers = {line["custom_id"]: line["response"]["body"] for line in content(client, batch.output_file_id)}
    [error] = content(client, batch.error_file_id)
    assert {answer["allotd"]["strategy"] for answer in answers.values()} == set(named)
    assert all(1 <= answer["allotd"]["samples"] <= 3 for answer in answers.values())
    assert "no predictor in use has read any of this model" in error["error"]["message"]


def test_what_a_batch_cost_is_what_the_tenant_spent(stack: Stack, client: OpenAI, tenant: dict[str, Any]) -> None:
    batch = wait_for(client, submit(client, [ask(stack.model, number) for number in range(6)]).id)

    with stack.admin() as admin:
        spend = admin.get("/v1/spend", params={"tenant": tenant["name"], "by": "batch"}).json()
    usage = [line["response"]["body"]["usage"] for line in content(client, batch.output_file_id)]
    cost = sum(50 * u["prompt_tokens"] + 200 * u["completion_tokens"] for u in usage)
    assert [group["key"] for group in spend["groups"]] == [batch.id]
    assert spend["total"]["cost_nanousd"] == batch.to_dict()["allotd"]["spent_nanousd"] == cost  # type: ignore[index]
    assert spend["total"]["outcomes"] == {"answered": 6}


def test_a_cancelled_batch_ends_with_every_line_accounted_for(stack: Stack, client: OpenAI) -> None:
    batch = submit(client, [ask(stack.model, number, strategy="self_consistency") for number in range(400)])

    cancelling = client.batches.cancel(batch.id)
    cancelled = wait_for(client, batch.id)

    answers, errors = content(client, cancelled.output_file_id), content(client, cancelled.error_file_id)
    assert cancelling.status in {"cancelling", "cancelled"}
    assert cancelled.status == "cancelled"
    assert counts(cancelled) == (len(answers) + len(errors), len(answers), len(errors))


def test_a_batch_cannot_be_cancelled_when_it_is_over(stack: Stack, client: OpenAI) -> None:
    batch = wait_for(client, submit(client, [ask(stack.model, 1)]).id)

    with pytest.raises(openai.ConflictError) as refusal:
        client.batches.cancel(batch.id)

    assert refusal.value.code == "conflict"


def test_a_file_with_no_good_line_fails_its_batch_and_says_why(client: OpenAI) -> None:
    batch = wait_for(client, submit(client, ["no", "good", "line"]).id)

    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data


def test_one_question_gets_its_answer_at_once(stack: Stack, client: OpenAI) -> None:
    completion = client.chat.completions.create(
        model=stack.model,
        messages=[{"role": "user", "content": "What is 2 + 3?"}],
        max_tokens=16,
        extra_body={"allotd": {"strategy": "direct"}},
    )

    assert completion.choices[0].message.content
    assert completion.usage is not None
    assert completion.usage.completion_tokens > 0
    assert completion.to_dict()["allotd"]["strategy"] == "direct"  # type: ignore[index]


def test_one_question_without_money_left_is_refused_and_not_asked_again(
    stack: Stack, client: OpenAI, tenant: dict[str, Any]
) -> None:
    stack.cap(tenant, "0.000000100")

    with pytest.raises(openai.RateLimitError) as refusal:
        client.chat.completions.create(
            model=stack.model, messages=[{"role": "user", "content": "What is 2 + 3?"}], max_tokens=16
        )

    assert refusal.value.code == "insufficient_quota"
    assert refusal.value.response.headers["x-should-retry"] == "false"


def test_one_question_that_makes_no_sense_is_refused_with_its_reason(stack: Stack, client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        client.chat.completions.create(
            model=stack.model, messages=[{"role": "user", "content": "?"}], extra_body={"max_tokens": -1}
        )

    assert refusal.value.param == "max_tokens"


def test_a_batch_that_may_cost_little_stops_there_and_goes_on_when_the_cap_is_raised(
    stack: Stack, client: OpenAI, tenant: dict[str, Any]
) -> None:
    stack.cap(tenant, "0.000030000")
    batch = submit(client, [ask(stack.model, number, strategy="direct") for number in range(30)])
    parked = _wait_until_parked(client, batch.id)

    stack.cap(tenant, "1")
    completed = wait_for(client, batch.id)

    assert parked["spent_nanousd"] + parked["held_nanousd"] <= 30_000
    assert counts(completed) == (30, 30, 0)


def test_the_files_of_a_batch_can_be_read_while_it_runs_and_afterwards(stack: Stack, client: OpenAI) -> None:
    batch = submit(client, [ask(stack.model, number) for number in range(4)])

    during = content(client, batch.output_file_id)
    after = content(client, wait_for(client, batch.id).output_file_id)

    assert len(during) <= len(after) == 4


def test_an_uploaded_file_can_be_looked_at_downloaded_and_deleted(stack: Stack, client: OpenAI) -> None:
    line = json.dumps(ask(stack.model, 1))
    file_id = upload(client, [line])

    seen, text = client.files.retrieve(file_id), client.files.content(file_id).text
    deleted = client.files.delete(file_id)

    assert (seen.bytes, seen.filename, text) == (len(line), "lines.jsonl", line)
    assert deleted.deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file_id)


def test_lists_are_walked_through_page_by_page(stack: Stack, client: OpenAI) -> None:
    made = [submit(client, [ask(stack.model, number)]).id for number in range(5)]

    batches = [batch.id for batch in client.batches.list(limit=2)]
    files = [file.id for file in client.files.list(purpose="batch", limit=2)]

    assert batches == made[::-1]
    assert len(files) == len(set(files)) == 5


def test_models_are_listed_with_their_prices(stack: Stack, client: OpenAI) -> None:
    listed = {model.id: model.to_dict() for model in client.models.list()}

    one = client.models.retrieve(stack.model)

    assert one.object == "model"
    assert listed[stack.model]["price"]["completion_usd_per_mtok"] == "0.200"  # type: ignore[index]


def test_a_wrong_key_is_refused(stack: Stack) -> None:
    with stack.client("sk-allotd-wrong") as stranger, pytest.raises(openai.AuthenticationError) as refusal:
        stranger.models.list()

    assert refusal.value.code == "invalid_api_key"


def test_another_tenants_objects_do_not_exist(stack: Stack, client: OpenAI) -> None:
    batch = submit(client, [ask(stack.model, 1)])

    with stack.client(stack.new_tenant()["key"]["key"]) as other:
        for look in (
            lambda: other.batches.retrieve(batch.id),
            lambda: other.batches.cancel(batch.id),
            lambda: other.files.retrieve(str(batch.output_file_id)),
            lambda: other.files.content(batch.input_file_id),
            lambda: other.files.delete(batch.input_file_id),
        ):
            with pytest.raises(openai.NotFoundError):
                look()
        assert list(other.batches.list()) == []
        assert list(other.files.list()) == []


def test_the_same_idempotency_key_opens_one_batch(stack: Stack, client: OpenAI) -> None:
    file_id = upload(client, [ask(stack.model, 1)])
    headers = {"Idempotency-Key": "the-same"}

    first, second = (
        client.batches.create(input_file_id=file_id, endpoint=ENDPOINT, completion_window="24h", extra_headers=headers)
        for _ in range(2)
    )

    assert first.id == second.id


def test_a_label_that_comes_later_changes_the_accuracy(stack: Stack, client: OpenAI, tenant: dict[str, Any]) -> None:
    batch = wait_for(client, submit(client, [ask(stack.model, number, verifier="exact") for number in range(2)]).id)
    headers = {"Authorization": f"Bearer {tenant['key']['key']}"}
    labels = [{"batch_id": batch.id, "custom_id": f"sum-{number}", "correct": number == 0} for number in range(2)]

    with httpx.Client(base_url=stack.url, headers=headers, trust_env=False) as http:
        accepted = http.post("/v1/feedback", json={"labels": labels}).json()
        spend = http.get("/v1/spend", params={"batch": batch.id}).json()

    assert accepted == {"object": "feedback", "accepted": 2}
    assert (spend["total"]["labelled"], spend["total"]["accuracy"]) == (2, 0.5)


def _wait_until_parked(client: OpenAI, batch_id: str) -> dict[str, Any]:
    """Poll until nothing of the batch can go on; returns how far it is."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        progress: Any = client.batches.retrieve(batch_id).to_dict()["allotd"]
        states = progress["states"]
        if states.get("parked") and not set(states) & {"queued", "planned", "running"}:
            assert isinstance(progress, dict)
            return progress
        assert time.monotonic() < deadline, progress
        time.sleep(0.1)
