"""Asks model servers what a small model makes of a prompt: a hidden state, and its tokens' log-probabilities."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, TypeVar

import httpx

from scheduler.errors import EngineError, EngineRejected, EngineUnavailable, InvalidRequest

CONCURRENCY = 32
TIMEOUT = httpx.Timeout(600.0, connect=10.0)
AHEAD_TIMEOUT = httpx.Timeout(120.0, connect=5.0)
"""For prompts that are read ahead: on two cores, alone, 16 as long as a probe server reads take 24 s together."""
END_ALONE = {"truncate_prompt_tokens": -1, "truncation_side": "left"}
"""Of a prompt that is longer than what the server reads, it reads the end."""
REFUSALS = (HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY)
"""What says that this prompt is wrong; anything else says that the server is."""
PLAIN = "What is 12 + 9?"
"""What a probe server is asked first: one that cannot read this reads nothing."""
LARGEST = 3e38
"""What a 32-bit float holds."""
DIGITS = 5
"""Significant digits of a vector's numbers: more say nothing, and fill the pool."""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptStatistics:
    """Log-probabilities of a prompt's tokens, each given those before it (natural logarithms), and their count."""

    mean: float
    std: float
    least: float
    tokens: int


def hidden_states(model: str, questions: Sequence[str], url: str) -> list[list[float]]:
    """The hidden state of each prompt's last token, as a pooling server at `url` gives it.

    It has passed the model's last norm, but is not scaled to length 1. Of too long a prompt the end is read.

    Raises EngineRejected that quotes the question where the server refuses one.
    """

    return asyncio.run(_ask_all(url, questions, partial(_hidden_state, model)))


def hidden_states_or_errors(model: str, prompts: Sequence[str], url: str) -> list[list[float] | EngineError]:
    """The same, with what went wrong for each prompt that has none."""

    async def ask(client: httpx.AsyncClient, prompt: str) -> list[float] | EngineError:
        try:
            return await _hidden_state(model, client, prompt)
        except EngineError as error:
            return error

    return asyncio.run(_ask_all(url, prompts, ask, AHEAD_TIMEOUT))


def served_view(url: str) -> str:
    """The name of a probe server's view. Raises EngineUnavailable where it cannot read a plain prompt."""
    name = _served_name(url)
    [told] = hidden_states_or_errors(name, [PLAIN], url)
    if isinstance(told, EngineError):
        raise EngineUnavailable(told.message)
    return name


def _served_name(url: str) -> str:
    answer = None
    try:
        answer = httpx.get(f"{url.rstrip('/')}/models", timeout=AHEAD_TIMEOUT, trust_env=False)
        return str(answer.raise_for_status().json()["data"][0]["id"])
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, IndexError, TypeError) as error:
        told = f"it answers {answer.status_code}" if answer is not None else type(error).__name__
        raise EngineUnavailable(
            f"The server at {url} does not name its model: {told}. The URL usually ends in /v1."
        ) from None


def prompt_statistics(model: str, questions: Sequence[str], url: str) -> list[PromptStatistics]:
    """What the prompts' tokens cost the model in surprise, from an ordinary server. Raises EngineRejected as above."""

    async def ask(client: httpx.AsyncClient, question: str) -> PromptStatistics:
        body = {**_chat(model, question), "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
        answer = await _post(client, "chat/completions", body, question)
        return statistics_of(answer["prompt_logprobs"])

    return asyncio.run(_ask_all(url, questions, ask))


def statistics_of(prompt_logprobs: Sequence[Any]) -> PromptStatistics:
    """From vLLM's list: per token its log-probability by token id, and null for the first one."""
    known = [next(iter(one.values()))["logprob"] for one in prompt_logprobs if one]
    if not known:
        return PromptStatistics(mean=0.0, std=0.0, least=0.0, tokens=len(prompt_logprobs))
    return PromptStatistics(mean=fmean(known), std=pstdev(known), least=min(known), tokens=len(prompt_logprobs))


async def _hidden_state(model: str, client: httpx.AsyncClient, prompt: str) -> list[float]:
    body = {**_chat(model, prompt), "add_generation_prompt": True, "use_activation": False, **END_ALONE}
    answer = await _post(client, "embeddings", body, prompt)
    try:
        vector = [float(f"{number:.{DIGITS}g}") for number in answer["data"][0]["embedding"]]
    except (KeyError, IndexError, TypeError, ValueError):
        raise EngineUnavailable("What answers is no pooling server: there is no embedding in its answer.") from None
    if not vector:
        raise EngineUnavailable("What answers is no pooling server: the embedding in its answer is empty.")
    if not all(abs(number) <= LARGEST for number in vector):
        raise EngineRejected(f"The prompt {prompt[:60]!r} has a hidden state that is no number, or too large a one.")
    return vector


def _chat(model: str, question: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": question}]}


async def _ask_all(
    url: str,
    questions: Sequence[str],
    ask: Callable[[httpx.AsyncClient, str], Awaitable[T]],
    timeout: httpx.Timeout = TIMEOUT,
) -> list[T]:
    turns = asyncio.Semaphore(CONCURRENCY)

    async def in_turn(client: httpx.AsyncClient, question: str) -> T:
        async with turns:
            return await ask(client, question)

    async with httpx.AsyncClient(base_url=f"{url.rstrip('/')}/", timeout=timeout, trust_env=False) as client:
        return list(await asyncio.gather(*(in_turn(client, question) for question in questions)))


async def _post(client: httpx.AsyncClient, path: str, body: dict[str, Any], question: str) -> Any:
    try:
        answer = await client.post(path, json=body)
    except httpx.HTTPError as error:
        raise EngineUnavailable(f"The model server does not answer: {error!r}") from None
    if answer.status_code in REFUSALS:
        raise EngineRejected(f"The model server refuses the prompt {question[:60]!r}: {answer.text[:300]}")
    if answer.is_error:
        raise EngineUnavailable(f"The model server answers {answer.status_code} at /{path}: {answer.text[:300]}")
    try:
        return answer.json()
    except ValueError:
        raise EngineUnavailable(f"The model server's answer at /{path} is no JSON: {answer.text[:60]!r}") from None


FROM_HUB = " `hf download NAME --local-dir DIRECTORY` gets one from the hub."


def layer_of(llm: Path, layer: int | None) -> int:
    """The layer of a model to be read: two thirds up where none is named, as middle ones told more than the last.

    Raises InvalidRequest where the directory holds no model, or not that many layers and one more.
    """
    try:
        config = json.loads((llm / "config.json").read_text())
        layers = int(config["num_hidden_layers"])
    except KeyError:
        raise InvalidRequest(
            f"{llm}: its config.json names no num_hidden_layers, so it is no plain text model; a probe needs one."
        ) from None
    except (OSError, ValueError, TypeError):
        raise InvalidRequest(f"{llm}: give a directory with a model's config.json and safetensors.{FROM_HUB}") from None
    if layers <= 1:
        raise InvalidRequest(f"{llm} has {layers} layer; the probe reads a middle one, so it needs two or more.")
    if not any(llm.glob("*.safetensors")):
        raise InvalidRequest(f"{llm} holds a config.json, but no safetensors beside it.{FROM_HUB}")
    if layer is not None and not 0 < layer < layers:
        raise InvalidRequest(f"{llm} has {layers} layers; one between 1 and {layers - 1} can be read, {layer} cannot.")
    return layer or max(1, layers * 2 // 3)
