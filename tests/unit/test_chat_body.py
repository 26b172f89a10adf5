"""What a client says to the model server: bounded or refused by name, the same in a batch and in a chat."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from scheduler.chat_body import ENDS_HERE, PASSED, ChatBody
from scheduler.chat_refusals import REFUSED
from scheduler.errors import SchedulerError
from scheduler.requests import ENDPOINT, Defaults, KnownLlm, Limits, ParsedQuery, Rejection, parse_chat_body, parse_line

LIMITS = Limits(llms={"small": KnownLlm(context_tokens=2048, tokenizer_path=None, is_priced=True)})


def body_with(**fields: Any) -> dict[str, Any]:
    return {"model": "small", "messages": [{"role": "user", "content": "What is 2 + 2?"}]} | fields


def in_a_batch(body: dict[str, Any]) -> ParsedQuery | Rejection:
    line = {"custom_id": "a", "method": "POST", "url": ENDPOINT, "body": body}
    return parse_line(json.dumps(line).encode(), 7, Defaults(), LIMITS)


def refusals(body: dict[str, Any]) -> tuple[tuple[str, str | None], str]:
    """The code and the parameter that batch and chat both give, and the sentence."""
    rejection = in_a_batch(body)
    assert isinstance(rejection, Rejection), rejection
    with pytest.raises(SchedulerError) as caught:
        parse_chat_body(body, LIMITS)
    assert caught.value.http_status == 400
    assert (caught.value.code, f"body.{caught.value.attributes['param']}") == (rejection.code, rejection.param)
    return (rejection.code, rejection.param), rejection.message


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_would_reach_into_the_model_server_is_refused_by_name(name: str) -> None:
    told, message = refusals(body_with(**{name: "x"}))

    assert told == ("field_unsupported", f"body.{name}")
    assert message == f"Line 7: body.{name} {REFUSED[name]}."


def test_a_field_that_nobody_knows_is_never_passed_on() -> None:
    told, message = refusals(body_with(new_vllm_switch={"url": "http://10.0.0.1/"}))

    assert told == ("unknown_field", "body.new_vllm_switch")
    assert "nothing unknown is passed to the model server" in message


@pytest.mark.parametrize("kind", ["image_url", "video_url", "audio_url", "input_audio", "image_embeds", "file"])
def test_a_part_that_the_model_server_would_fetch_or_unpack_is_refused_by_name(kind: str) -> None:
    part = {"type": kind, kind: {"url": "data:image/png;base64,AA=="}}

    told, message = refusals(body_with(messages=[{"role": "user", "content": [part]}]))

    assert told == ("field_unsupported", "body.messages[0].content[0].type")
    assert f"is '{kind}', which is not taken: messages are text" in message


def test_a_url_cannot_ride_along_with_a_text_part_or_a_message() -> None:
    part = {"type": "text", "text": "hi", "image_url": {"url": "http://10.0.0.1/"}}

    in_part, _ = refusals(body_with(messages=[{"role": "user", "content": [part]}]))
    in_message, _ = refusals(body_with(messages=[{"role": "user", "content": "hi", "audio": {"id": "1"}}]))

    assert in_part == ("field_unsupported", "body.messages[0].content[0].image_url")
    assert in_message == ("field_unsupported", "body.messages[0].audio")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"stream": True}, "stream"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 5}, "top_logprobs"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": "x" * 257}, "stop"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"logit_bias": {"5": 101}}, "logit_bias[...]"),
        ({"logit_bias": {"five": 1}}, "logit_bias"),
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
        ({"top_k": 10**7}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"tool_choice": "maybe"}, "tool_choice"),
        ({"chat_template_kwargs": {"chat_template": "{{ x }}"}}, "chat_template_kwargs.chat_template"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs.tokenize"),
        ({"response_format": {"type": "structural_tag"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"messages": [{"role": "user", "content": "x"}] * 4097}, "messages"),
    ],
)
def test_what_is_taken_has_a_bound(fields: dict[str, Any], param: str) -> None:
    told, message = refusals(body_with(**fields))

    assert told[1] == f"body.{param}"
    assert message.startswith(f"Line 7: body.{param} ")


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "string", "pattern": "(a{1000}){1000}"}, "has a pattern that is refused"),
        ({"type": "string", "pattern": r"(a+)\1"}, "has a pattern that is refused"),
        ({"type": "string", "pattern": "a" * 1001}, "has a pattern that is refused"),
        ({"type": "string", "minLength": 10**9}, "counts to 1000000000 with minLength"),
        ({"type": "object", "properties": {"a": {"type": "array", "maxItems": 10**6}}}, "counts to 1000000"),
        ({"patternProperties": {"^(a+)+$": {}}}, "patternProperties"),
        ({"$ref": "http://10.0.0.1/schema.json"}, "nothing is fetched"),
        ({"type": "anything"}, "is refused: The JSON schema is wrong"),
        ({"enum": ["x" * 40_000]}, "32768 are allowed"),
    ],
)
def test_a_schema_that_would_make_a_grammar_without_end_is_refused(schema: dict[str, Any], says: str) -> None:
    answer = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    tool = {"type": "function", "function": {"name": "add", "parameters": schema}}

    in_answer, answer_message = refusals(body_with(response_format=answer))
    in_tool, tool_message = refusals(body_with(tools=[tool]))

    assert in_answer == ("invalid_schema", "body.response_format.json_schema.schema")
    assert in_tool == ("invalid_schema", "body.tools[0].function.parameters")
    assert says in answer_message
    assert says in tool_message


@pytest.mark.parametrize("arguments", ["{", "[]", "[" * 100_000, '{"a": NaN}', '{"a":' * 70 + "1" + "}" * 70])
def test_arguments_of_past_calls_are_json_within_bounds(arguments: str) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": arguments}}

    told, _ = refusals(body_with(messages=[{"role": "assistant", "tool_calls": [call]}]))

    assert told == ("invalid_message", "body.messages[0].tool_calls[0].function.arguments")


def test_every_field_of_openai_that_makes_sense_is_taken_and_the_servers_own_are_passed_on() -> None:
    schema = {"type": "object", "properties": {"sum": {"type": "integer", "minimum": -(10**9)}}, "required": ["sum"]}
    passed: dict[str, Any] = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": -1,
        "seed": -1,
        "stop": ["\n"],
        "logit_bias": {"5": -100},
        "presence_penalty": 1,
        "tools": [{"type": "function", "function": {"name": "add", "parameters": schema, "strict": True}}],
        "tool_choice": {"type": "function", "function": {"name": "add"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
        "reasoning_effort": "low",
        "chat_template_kwargs": {"enable_thinking": False},
    }
    dropped = {"user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "stream": False, "n": 1}

    query = in_a_batch(body_with(**passed, **dropped, logprobs=None))

    assert isinstance(query, ParsedQuery), query
    assert json.loads(query.body_json) == body_with(**passed)


def test_every_field_is_passed_on_or_ends_here_and_none_is_also_refused() -> None:
    known = {field.name for field in msgspec.structs.fields(ChatBody)}

    assert known == PASSED | ENDS_HERE
    assert not known & set(REFUSED)


def test_what_runs_code_fetches_or_reaches_other_requests_is_among_what_is_refused() -> None:
    dangerous = {"chat_template", "mm_processor_kwargs", "media_io_kwargs", "prompt_embeds", "vllm_xargs", "cache_salt"}
    dangerous |= {"guided_regex", "guided_grammar", "structured_outputs", "documents", "extra_body", "priority"}
    dangerous |= {"image_url", "video_url", "audio_url", "request_id", "kv_transfer_params", "logits_processors"}

    assert dangerous <= set(REFUSED)
