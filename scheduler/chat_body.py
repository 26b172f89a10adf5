"""What a chat request may say to the model server: every field it knows is bounded, and all others are refused by name.

The body goes on to a model server that would fetch URLs, run templates and compile grammars for whoever asks, so what
is not listed here never reaches it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

TOKENS_MAX = 10_000_000
"""Ten times the longest context that is served in 2026; a larger number is a mistake."""
MESSAGES_MAX = 4096
STOPS_MAX, STOP_CHARACTERS_MAX = 16, 256
TOOLS_MAX = 128

Whole = Annotated[int, Meta(ge=1, le=TOKENS_MAX)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
StopText = Annotated[str, Meta(min_length=1, max_length=STOP_CHARACTERS_MAX)]
ShortText = Annotated[str, Meta(max_length=256)]
FunctionName = Annotated[str, Meta(pattern="^[A-Za-z0-9_.-]{1,64}$")]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Off = Annotated[bool, Meta(extra_json_schema={"enum": [False]})]
"""A switch that is known and must stay off."""


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    """An object of which every field is known."""


class TextPart(Strict, tag_field="type", tag="text"):
    """A part of a message's content."""

    text: str


class RefusalPart(Strict, tag_field="type", tag="refusal"):
    """What an assistant once refused."""

    refusal: str


Part = TextPart | RefusalPart
Content = str | Annotated[list[Part], Meta(min_length=1)]


class CalledFunction(Strict):
    """A function that an assistant once called."""

    name: FunctionName
    arguments: str


class ToolCall(Strict):
    """A tool that an assistant once used."""

    id: ShortText
    type: Literal["function"]
    function: CalledFunction
    index: int | None = None


class SystemMessage(Strict, tag_field="role", tag="system"):
    """What the application tells the model."""

    content: Content
    name: ShortText | None = None


class DeveloperMessage(Strict, tag_field="role", tag="developer"):
    """The same under its newer name."""

    content: Content
    name: ShortText | None = None


class UserMessage(Strict, tag_field="role", tag="user"):
    """What a person says."""

    content: Content
    name: ShortText | None = None


class AssistantMessage(Strict, tag_field="role", tag="assistant"):
    """What the model said."""

    content: Content | None = None
    name: ShortText | None = None
    tool_calls: Annotated[list[ToolCall], Meta(max_length=TOOLS_MAX)] | None = None
    function_call: CalledFunction | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    audio: None = None
    annotations: Annotated[list[Any], Meta(max_length=0)] | None = None


class ToolMessage(Strict, tag_field="role", tag="tool"):
    """What a tool answered."""

    content: Content
    tool_call_id: ShortText | UnsetType = UNSET
    name: ShortText | None = None


class FunctionMessage(Strict, tag_field="role", tag="function"):
    """What a function answered."""

    content: Content
    name: ShortText


Message = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage | FunctionMessage


class Function(Strict):
    """A function that the model may call."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    """A tool that the model may use."""

    type: Literal["function"]
    function: Function


class NamedFunction(Strict):
    """A function by its name."""

    name: FunctionName


class NamedTool(Strict):
    """The one tool that the model must use."""

    type: Literal["function"]
    function: NamedFunction


class AnswerSchema(Strict):
    """A JSON schema that the answer must fit."""

    name: FunctionName
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class TextFormat(Strict, tag_field="type", tag="text"):
    """An answer in any form."""


class JsonFormat(Strict, tag_field="type", tag="json_object"):
    """An answer that is a JSON object."""


class SchemaFormat(Strict, tag_field="type", tag="json_schema"):
    """An answer that fits a JSON schema."""

    json_schema: AnswerSchema


class TemplateOptions(Strict):
    """What the model's own chat template is told; it would take anything, also what replaces it."""

    enable_thinking: bool | None = None
    thinking: bool | None = None
    thinking_budget: Whole | None = None
    reasoning_effort: Effort | None = None


class ChatBody(Strict):
    """A chat completion request as the model server gets it, with OpenAI's fields that end here."""

    model: Annotated[str, Meta(min_length=1)]
    messages: Annotated[list[Message], Meta(min_length=1, max_length=MESSAGES_MAX)]
    # How much is generated
    max_tokens: Whole | None = None
    max_completion_tokens: Whole | None = None
    n: Annotated[int, Meta(extra_json_schema={"enum": [1]})] | None = None
    stop: StopText | Annotated[list[StopText], Meta(max_length=STOPS_MAX)] | None = None
    stop_token_ids: Annotated[list[Annotated[int, Meta(ge=0, le=2**31)]], Meta(max_length=64)] | None = None
    reasoning_effort: Effort | None = None
    thinking_token_budget: Annotated[int, Meta(ge=0, le=TOKENS_MAX)] | None = None
    # How it is drawn
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=1_000_000)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    logit_bias: (
        Annotated[
            dict[Annotated[str, Meta(pattern="^[0-9]{1,9}$")], Annotated[float, Meta(ge=-100, le=100)]],
            Meta(max_length=1024),
        ]
        | None
    ) = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    # What it looks like
    tools: Annotated[list[Tool], Meta(max_length=TOOLS_MAX)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: TextFormat | JsonFormat | SchemaFormat | None = None
    chat_template_kwargs: TemplateOptions | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    include_reasoning: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    # What ends here
    stream: Off | None = None
    stream_options: Any = None
    logprobs: Off | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20, extra_json_schema={"enum": [0]})] | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: Literal["auto", "default", "flex", "priority"] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    modalities: list[Literal["text"]] | None = None


ENDS_HERE = frozenset(
    {
        "n",
        "stream",
        "stream_options",
        "logprobs",
        "top_logprobs",
        "max_completion_tokens",
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "modalities",
    }
)
"""Fields that are understood and not passed on."""
PASSED = frozenset(ChatBody.__struct_fields__) - ENDS_HERE


def passed_on(body: Mapping[str, Any]) -> dict[str, Any]:
    """What of a checked body the model server gets."""
    return {key: value for key, value in body.items() if key in PASSED and value is not None}
