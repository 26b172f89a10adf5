"""Every way in which a line can be wrong is named: what, where, and what to do."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from scheduler.errors import InvalidRequest, ModelUnpriced, NotFound, SchedulerError
from scheduler.requests import (
    ENDPOINT,
    Defaults,
    KnownLlm,
    Limits,
    Options,
    ParsedQuery,
    Rejection,
    batch_options,
    parse_chat_body,
    parse_line,
)

LIMITS = Limits(
    llms={
        "small": KnownLlm(context_tokens=2048, tokenizer_path=None, is_priced=True),
        "large": KnownLlm(context_tokens=4096, tokenizer_path=None, is_priced=True),
        "unpriced": KnownLlm(context_tokens=2048, tokenizer_path=None, is_priced=False),
    },
    samples_limit=64,
)
MESSAGES = [{"role": "user", "content": "What is 2 + 2?"}]


def line(**changes: Any) -> bytes:
    """A good line with some of its parts changed; what is set to ... is left out."""
    body = {"model": "small", "messages": MESSAGES} | changes.pop("body", {})
    whole = {"custom_id": "a", "method": "POST", "url": ENDPOINT, "body": body} | changes
    whole["body"] = {key: value for key, value in whole["body"].items() if value is not ...}
    return json.dumps({key: value for key, value in whole.items() if value is not ...}).encode()


def parsed(raw: bytes, options: Options | None = None) -> ParsedQuery:
    query = parse_line(raw, 7, Defaults(options=options or Options()), LIMITS)
    assert isinstance(query, ParsedQuery), query
    return query


def rejected(raw: bytes, options: Options | None = None) -> Rejection:
    rejection = parse_line(raw, 7, Defaults(options=options or Options()), LIMITS)
    assert isinstance(rejection, Rejection), rejection
    assert "Line 7" in rejection.message
    assert rejection.line == 7
    return rejection


def content(value: object) -> dict[str, Any]:
    return {"body": {"messages": [{"role": "user", "content": value}]}}


def allotd(**options: Any) -> dict[str, Any]:
    return {"body": {"allotd": options}}


@pytest.mark.parametrize(
    ("raw", "code", "says"),
    [
        (b"nope", "invalid_json", "is not JSON: invalid character"),
        (b'{"custom_id": "a"', "invalid_json", "it ends in the middle"),
        (b"{} {}", "invalid_json", "trailing characters"),
        (b"[1, 2]", "invalid_line", "is a list, not an object"),
        (b'"text"', "invalid_line", "is text, not an object"),
        (b"17", "invalid_line", "is a number, not an object"),
        (b"null", "invalid_line", "is null, not an object"),
        (line(**content("X")).replace(b'"X"', b'"\xe9"'), "invalid_encoding", "byte 0xE9 at position"),
        (line(**content("X")).replace(b'"X"', b'"\xed\xa0\x80"'), "invalid_encoding", "not UTF-8: byte 0xED"),
        (line(**content("X")).replace(b'"X"', rb'"\ud83d"'), "invalid_encoding", r"holds \ud83d at position"),
        (line(**content("X")).replace(b'"X"', rb'"\ude00\ud83d"'), "invalid_encoding", r"holds \ude00 at position"),
        (line(body={"seed": 77}).replace(b"77", b"NaN"), "invalid_number", "holds NaN"),
        (line(body={"seed": 77}).replace(b"77", b"-Infinity"), "invalid_number", "holds -Infinity"),
        (line(body={"temperature": 77}).replace(b"77", b"1e400"), "invalid_number", "like 1e400"),
        (line(body={"seed": 77}).replace(b"77", b"9" * 6000), "invalid_number", "number too large"),
        (line(body={"seed": 77}).replace(b"77", b"[" * 65 + b"]" * 65), "nested_too_deep", "deeper than 64 levels"),
        (b"[" * 100_000, "nested_too_deep", "deeper than 64 levels"),
        (b'{"a":' * 100_000, "nested_too_deep", "deeper than 64 levels"),
    ],
)
def test_bytes_that_are_no_request_are_refused_with_what_they_are(raw: bytes, code: str, says: str) -> None:
    rejection = rejected(raw)

    assert rejection.code == code
    assert says in rejection.message


@pytest.mark.parametrize(
    ("changes", "code", "param", "says"),
    [
        ({"custom_id": ...}, "invalid_custom_id", "custom_id", "missing; give each line one of its own"),
        ({"custom_id": 17}, "invalid_custom_id", "custom_id", "must be text, not a number"),
        ({"custom_id": ""}, "invalid_custom_id", "custom_id", "is empty; give it 1 to 512"),
        ({"custom_id": "x" * 513}, "invalid_custom_id", "custom_id", "has 513 characters"),
        ({"custom_id": "a\0b"}, "invalid_custom_id", "custom_id", "NUL"),
        ({"method": "GET"}, "invalid_method", "method", "'GET'; it must be 'POST'"),
        ({"method": ...}, "invalid_method", "method", "is missing"),
        ({"url": "/v1/embeddings"}, "invalid_url", "url", f"it must be the batch's endpoint '{ENDPOINT}'"),
        ({"url": ["/v1"]}, "invalid_url", "url", "it must be"),
        ({"url": ...}, "invalid_url", "url", "is missing"),
        ({"body": {"stream": True}}, "stream_unsupported", "body.stream", "answers are not streamed"),
        ({"body": {"n": 2}}, "n_unsupported", "body.n", "set body.allotd.samples_max"),
        ({"body": {"n": 0}}, "n_unsupported", "body.n", "n is 0"),
        ({"body": {"logprobs": True}}, "logprobs_unsupported", "body.logprobs", "answers carry none"),
        ({"body": {"top_logprobs": 5}}, "logprobs_unsupported", "body.top_logprobs", "answers carry none"),
        (
            {"body": {"model": "gpt"}},
            "model_not_found",
            "body.model",
            "'gpt' is not served; served: 'large', 'small', 'unpriced'",
        ),
        ({"body": {"model": "unpriced"}}, "model_unpriced", "body.model", "`allotd price set unpriced --prompt"),
        ({"body": {"model": 3}}, "invalid_type", "body.model", "must be text, not a whole number"),
        ({"body": {"model": ...}}, "missing_field", "body.model", "body.model is missing"),
        ({"body": {"messages": ...}}, "missing_field", "body.messages", "body.messages is missing"),
        ({"body": {"messages": []}}, "invalid_value", "body.messages", "is empty; give at least one"),
        ({"body": {"messages": "hi"}}, "invalid_type", "body.messages", "must be a list, not text"),
        ({"body": {"messages": ["hi"]}}, "invalid_type", "body.messages[0]", "must be an object, not text"),
        ({"body": {"messages": [{"content": "x"}]}}, "missing_field", "body.messages[0].role", "is missing"),
        (
            {"body": {"messages": [{"role": "king", "content": "x"}]}},
            "invalid_value",
            "body.messages[0].role",
            "unknown value 'king'; known: system, developer, user",
        ),
        ({"body": {"messages": [{"role": "user"}]}}, "missing_field", "body.messages[0].content", "is missing"),
        (content(None), "invalid_type", "body.messages[0].content", "must be text or a list, not null"),
        (content(5), "invalid_type", "body.messages[0].content", "must be text or a list, not a whole number"),
        (content([]), "invalid_value", "body.messages[0].content", "is empty"),
        (content(["hi"]), "invalid_type", "body.messages[0].content[0]", "must be an object"),
        (content([{"text": "hi"}]), "missing_field", "body.messages[0].content[0].type", "is missing"),
        (content([{"type": "text"}]), "missing_field", "body.messages[0].content[0].text", "is missing"),
        (
            content([{"type": "image_url", "image_url": {"url": "http://10.0.0.1/"}}]),
            "field_unsupported",
            "body.messages[0].content[0].type",
            "is 'image_url', which is not taken: messages are text",
        ),
        ({"body": {"max_tokens": 0}}, "invalid_value", "body.max_tokens", "a whole number of at least 1"),
        ({"body": {"max_tokens": -5}}, "invalid_value", "body.max_tokens", "at least 1"),
        ({"body": {"max_tokens": 10**12}}, "invalid_value", "body.max_tokens", "at most 10000000"),
        ({"body": {"max_tokens": 10**30}}, "invalid_value", "body.max_tokens", "at most 10000000"),
        ({"body": {"max_tokens": 4096}}, "invalid_max_tokens", "body.max_tokens", "more than the 2048 tokens"),
        ({"body": {"max_completion_tokens": 4096}}, "invalid_max_tokens", "body.max_completion_tokens", "is 4096"),
        ({"body": {"max_tokens": "64"}}, "invalid_type", "body.max_tokens", "must be a whole number, not text"),
        ({"body": {"max_tokens": 6.5}}, "invalid_type", "body.max_tokens", "must be a whole number, not a number"),
        ({"body": {"max_tokens": True}}, "invalid_type", "body.max_tokens", "not true or false"),
        ({"body": {"temperature": -0.1}}, "invalid_value", "body.temperature", "a number of at least 0"),
        ({"body": {"temperature": 2.1}}, "invalid_value", "body.temperature", "a number of at most 2"),
        ({"body": {"temperature": "hot"}}, "invalid_type", "body.temperature", "must be a number, not text"),
        ({"body": {"top_p": 0}}, "invalid_value", "body.top_p", "above 0"),
        ({"body": {"top_p": 1.1}}, "invalid_value", "body.top_p", "at most 1"),
        ({"body": {"seed": 2**63}}, "invalid_value", "body.seed", "at most 9223372036854775807"),
        ({"body": {"stop": 3}}, "invalid_type", "body.stop", "must be text or a list"),
        ({"body": {"tools": "hammer"}}, "invalid_type", "body.tools", "must be a list, not text"),
        ({"body": {"allotd": []}}, "invalid_type", "body.allotd", "must be an object, not a list"),
        (allotd(verifer="math"), "unknown_field", "body.allotd.verifer", "is not known; known here: strategy, samples"),
        (allotd(strategy="guess"), "invalid_value", "body.allotd.strategy", "not one of auto, direct, best_of_n"),
        (allotd(samples_max=0), "invalid_value", "body.allotd.samples_max", "at least 1"),
        (allotd(samples_max=65), "invalid_value", "body.allotd.samples_max", "is 65; this server allows at most 64"),
        (allotd(tokens_max=-1), "invalid_value", "body.allotd.tokens_max", "at least 1"),
        (allotd(cost_max_usd=-1), "invalid_value", "body.allotd.cost_max_usd", "must be more than 0 USD"),
        (allotd(cost_max_usd="lots"), "invalid_value", "body.allotd.cost_max_usd", "is no number"),
        (allotd(cost_max_usd=1e-12), "invalid_value", "body.allotd.cost_max_usd", "more than 9 decimals"),
        (allotd(verifier="oracle"), "invalid_verifier", "body.allotd.verifier", "not one of exact, numeric, math"),
        (allotd(verifier="numeric", reference="many"), "invalid_verifier", "body.allotd.reference", "is no number"),
        (allotd(verifier="regex", reference="("), "invalid_verifier", "body.allotd.reference", "regex"),
        (allotd(verifier="json_schema", reference="{"), "invalid_verifier", "body.allotd.reference", "json_schema"),
        (allotd(strategy="best_of_n"), "invalid_verifier", "body.allotd.verifier", "needs a verifier with a reference"),
        (allotd(strategy="damani"), "invalid_verifier", "body.allotd.verifier", "damani needs a verifier with a"),
        (allotd(strategy="asc@2"), "invalid_value", "body.allotd.strategy", "that of asc is a number from 0.5 to 1"),
        (allotd(strategy="esc@"), "invalid_value", "body.allotd.strategy", "has the setting nothing; that of esc is a"),
        (allotd(strategy="esc@nan"), "invalid_value", "body.allotd.strategy", "that of esc is a whole number"),
        (allotd(strategy="esc@2.5"), "invalid_value", "body.allotd.strategy", "that of esc is a whole number"),
        (allotd(strategy="asc@ 0.9"), "invalid_value", "body.allotd.strategy", "has the setting  0.9; that of"),
        (allotd(strategy="direct@1"), "invalid_value", "body.allotd.strategy", "direct takes none; leave out @1"),
        (allotd(strategy="snell"), "invalid_value", "body.allotd.strategy", "trains one with `allotd predictor train`"),
        (allotd(reference=5), "invalid_type", "body.allotd.reference", "must be text, not a whole number"),
        (allotd(reference="a\0"), "invalid_value", "body.allotd.reference", "NUL"),
        (allotd(task="t" * 129), "invalid_value", "body.allotd.task", "text of at most 128 characters"),
        (allotd(priority=101), "invalid_value", "body.allotd.priority", "at most 100"),
        (allotd(models=["nope"]), "model_not_found", "body.allotd.models", "'nope' is not served; served: 'large'"),
        (allotd(models="large,unpriced"), "model_unpriced", "body.allotd.models", "allotd price set unpriced"),
        (allotd(models=[]), "invalid_value", "body.allotd.models", "is empty"),
        (allotd(models=7), "invalid_type", "body.allotd.models", "must be"),
        (allotd(models=["large"], strategy="direct"), "invalid_value", "body.allotd.models", "needs the strategy auto"),
    ],
)
def test_a_wrong_field_is_named_with_what_is_wrong_and_what_to_do(
    changes: dict[str, Any], code: str, param: str, says: str
) -> None:
    rejection = rejected(line(**changes))

    assert (rejection.code, rejection.param) == (code, param)
    assert says in rejection.message


def test_a_body_that_is_no_object_is_refused() -> None:
    raw = json.dumps({"custom_id": "a", "method": "POST", "url": ENDPOINT, "body": "x"}).encode()

    assert "body must be an object, not text" in rejected(raw).message


@pytest.mark.parametrize(
    "raw",
    [
        b'{"custom_id": "caf\xc3\xa9-1", "method": "POST", "body": {"model": ',
        b'{"method": "POST" "custom_id" : "caf\\u00e9-1"}',
        b'{"custom_id": "caf\xc3\xa9-1", "body": {"temperature": NaN}}',
        b'{"custom_id": "caf\xc3\xa9-1", "body": {"user": "\xff"}}',
        b'[{"custom_id": "caf\xc3\xa9-1"',
    ],
)
def test_a_broken_line_is_told_with_the_custom_id_it_holds(raw: bytes) -> None:
    assert rejected(raw).said == "caf\u00e9-1"


@pytest.mark.parametrize(
    "raw", [b'{"custom_id": 17', b'{"custom_id": "a', b'{"text": "\\"custom_id\\": \\"a\\""', b"x"]
)
def test_a_broken_line_without_a_custom_id_makes_none_up(raw: bytes) -> None:
    assert rejected(raw).said is None


def test_a_rejected_line_keeps_a_usable_custom_id_and_repeats_an_unusable_one() -> None:
    usable, unusable, absurd = (
        rejected(line(method="GET")),
        rejected(line(custom_id=17)),
        rejected(line(custom_id="x" * 10**5)),
    )

    assert (usable.custom_id, usable.said) == ("a", None)
    assert (unusable.custom_id, unusable.said) == (None, "17")
    assert len(absurd.as_json()) < 500


def test_a_prompt_longer_than_the_models_context_is_refused() -> None:
    rejection = rejected(line(**content("hello " * 20_000)))

    assert rejection.code == "context_length_exceeded"
    assert "the context of 'small' holds 2048" in rejection.message


def test_a_prompt_of_more_bytes_than_the_context_has_tokens_may_still_fit() -> None:
    query = parsed(line(**content("hello " * 1000)))

    assert len(query.body_json) > 2048


def test_a_good_line_becomes_a_query_with_everything_it_asks_for() -> None:
    options = {
        "strategy": "best_of_n",
        "samples_max": 4,
        "tokens_max": 32,
        "cost_max_usd": "0.000001",
        "verifier": "numeric",
        "reference": "4",
        "task": "sums",
        "priority": -3,
    }

    query = parsed(line(body={"temperature": 0.5, "max_tokens": 64, "allotd": options, "logit_bias": {"5": 1}}))

    assert query.custom_id == "a"
    assert query.model == "small"
    assert (query.strategy, query.samples_max, query.tokens_max) == ("best_of_n", 4, 32)
    assert (query.verifier, query.reference, query.task, query.priority) == ("numeric", "4", "sums", -3)
    assert query.limit_nanousd == 1000
    assert json.loads(query.body_json) == {
        "model": "small",
        "messages": MESSAGES,
        "temperature": 0.5,
        "max_tokens": 64,
        "logit_bias": {"5": 1},
    }


def test_what_allotd_decides_itself_is_not_passed_to_the_server() -> None:
    body: dict[str, Any] = {
        "n": 1,
        "stream": False,
        "stream_options": None,
        "max_completion_tokens": 9,
        "max_tokens": 12,
        "allotd": {},
    }

    query = parsed(line(body=body))

    assert json.loads(query.body_json) == {"model": "small", "messages": MESSAGES, "max_tokens": 9}


def test_nulls_stand_for_what_is_left_out() -> None:
    body = {"n": None, "stream": None, "max_tokens": None, "temperature": None, "stop": None, "allotd": None}

    assert parsed(line(body=body)).strategy == "auto"


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "system", "content": "Be brief."}, *MESSAGES],
        [{"role": "user", "content": [{"type": "text", "text": "hi"}], "name": "me"}],
        [
            *MESSAGES,
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}],
            },
            {"role": "tool", "content": "4", "tool_call_id": "1"},
        ],
        [{"role": "user", "content": "\u0000 \U0001f600 \u00e9"}],
        [{"role": "user", "content": "{[" * 500}],
    ],
)
def test_messages_of_every_kind_are_kept_as_they_are(messages: list[dict[str, Any]]) -> None:
    query = parsed(line(body={"messages": messages}))

    assert json.loads(query.body_json)["messages"] == messages


def test_nesting_up_to_the_limit_is_fine() -> None:
    raw = line(body={"stream_options": 77}).replace(b"77", b"[" * 62 + b"]" * 62)

    assert parsed(raw)


def test_of_duplicate_keys_the_last_one_stands() -> None:
    raw = line().replace(b'"model": "small"', b'"model": "gpt", "model": "small"')

    assert json.loads(parsed(raw).body_json)["model"] == "small"


def test_a_line_says_what_the_batch_says_unless_it_says_otherwise() -> None:
    options, _ = batch_options({"strategy": "direct", "samples_max": "4", "task": "sums", "priority": "-2"})

    quiet, loud = parsed(line(), options), parsed(line(**allotd(strategy="auto", samples_max=2, priority=0)), options)

    assert (quiet.strategy, quiet.samples_max, quiet.task, quiet.priority) == ("direct", 4, "sums", -2)
    assert (loud.strategy, loud.samples_max, loud.task, loud.priority) == ("auto", 2, "sums", 0)


def test_a_batchs_verifier_judges_each_lines_reference() -> None:
    options, _ = batch_options({"verifier": "numeric", "strategy": "best_of_n"})

    assert parsed(line(**allotd(reference="4")), options).verifier == "numeric"
    assert "needs a verifier with a reference" in rejected(line(), options).message


def test_a_batchs_cost_limit_is_not_its_lines_limit() -> None:
    options, limit = batch_options({"cost_max_usd": "0.10", "nightly": "yes"})

    assert limit == 100_000_000
    assert parsed(line(), options).limit_nanousd is None


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({"strategy": "guess"}, "Metadata.strategy 'guess' is not one of"),
        ({"samples_max": "many"}, "Metadata.samples_max must be a whole number"),
        ({"samples_max": "0"}, "Metadata.samples_max must be a whole number of at least 1"),
        ({"cost_max_usd": "nan"}, "Metadata.cost_max_usd: The amount 'nan' is no number"),
        ({"verifier": "oracle"}, "Metadata.verifier 'oracle' is not one of"),
        ({"verifier": "regex", "reference": "("}, "Metadata.verifier: "),
        ({"task": "\0"}, "Metadata.task holds a NUL"),
    ],
)
def test_wrong_options_in_metadata_are_named(metadata: dict[str, str], says: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        batch_options(metadata)

    assert says in caught.value.message
    assert str(caught.value.attributes["param"]).startswith("metadata.")


def test_an_interactive_body_is_checked_like_a_lines() -> None:
    as_mapping = parse_chat_body({"model": "small", "messages": MESSAGES, "max_tokens": 5}, LIMITS)
    as_bytes = parse_chat_body(json.dumps({"model": "small", "messages": MESSAGES, "max_tokens": 5}).encode(), LIMITS)

    assert as_mapping == as_bytes
    assert as_mapping.custom_id is None


@pytest.mark.parametrize(
    ("changes", "kind", "code", "param"),
    [
        ({"model": "gpt"}, NotFound, "model_not_found", "model"),
        ({"model": "unpriced"}, ModelUnpriced, "model_unpriced", "model"),
        ({"stream": True}, InvalidRequest, "stream_unsupported", "stream"),
        ({"messages": [{"role": "king", "content": ""}]}, InvalidRequest, "invalid_value", "messages[0].role"),
        ({"temperature": math.nan}, InvalidRequest, "invalid_number", None),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, InvalidRequest, "invalid_encoding", None),
    ],
)
def test_a_wrong_interactive_body_raises_what_is_wrong(
    changes: dict[str, Any], kind: type[SchedulerError], code: str, param: str | None
) -> None:
    with pytest.raises(kind) as caught:
        parse_chat_body({"model": "small", "messages": MESSAGES} | changes, LIMITS)

    assert caught.value.code == caught.value.attributes["code"] == code
    assert caught.value.attributes["param"] == param


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff", b"{"])
def test_an_interactive_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match=r"^The body is"):
        parse_chat_body(body, LIMITS)


@pytest.mark.parametrize("strategy", ["asc@0.9", "asc-dirichlet", "esc@5", "its-hub@0.75", "bandit", "dsc@0.3"])
def test_a_line_may_name_a_published_rule_and_its_setting(strategy: str) -> None:
    assert parsed(line(**allotd(strategy=strategy))).strategy == strategy


def test_a_setting_has_one_spelling_so_that_reports_group_it_together() -> None:
    assert [parsed(line(**allotd(strategy=said))).strategy for said in ("asc@0.90", "asc@0.9", "esc@5.0")] == [
        "asc@0.9",
        "asc@0.9",
        "esc@5",
    ]


@pytest.mark.parametrize("strategy", ["snell@2", "lagrangian", "damani-binned@8"])
def test_a_rule_that_learns_from_earlier_queries_runs_where_the_predictor_remembers_some(strategy: str) -> None:
    remembered = replace(LIMITS, llms={"small": replace(LIMITS.llms["small"], has_history=True)})

    query = parse_line(line(**allotd(strategy=strategy)), 7, Defaults(), remembered)

    assert isinstance(query, ParsedQuery)
    assert query.strategy == strategy


@pytest.mark.parametrize("models", [["large"], ["small", "large"], "large", "small, large", ["large", "large"]])
def test_the_models_that_may_answer_are_the_bodys_and_those_named_beside_it(models: object) -> None:
    assert parsed(line(**allotd(models=models))).models == ("small", "large")


@pytest.mark.parametrize("models", [..., ["small"], "small"])
def test_a_line_that_names_no_other_model_has_no_choice(models: object) -> None:
    changes = {} if models is ... else allotd(models=models)

    assert parsed(line(**changes)).models == ()


def test_metadata_names_models_for_all_lines_and_a_line_may_have_its_own_only() -> None:
    options, _ = batch_options({"models": "small,large"})

    assert parsed(line(), options).models == ("small", "large")
    assert parsed(line(**allotd(models=["small"])), options).models == ()


def test_models_in_metadata_beside_another_strategy_are_refused_at_once() -> None:
    with pytest.raises(InvalidRequest, match="needs the strategy auto") as caught:
        batch_options({"models": "large", "strategy": "best_of_n"})

    assert caught.value.attributes["param"] == "metadata.models"


def test_a_prompt_must_fit_every_model_that_may_answer() -> None:
    long = line(body={"model": "large", "messages": [{"role": "user", "content": "word " * 10000}]})

    assert parsed(long).model == "large"
    both = json.loads(long)
    both["body"]["allotd"] = {"models": ["small"]}
    assert rejected(json.dumps(both).encode()).code == "context_length_exceeded"
