"""Asks model servers what a small model makes of a prompt: a hidden state, and its tokens' log-probabilities."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any, TypeVar

import httpx

from scheduler.errors import EngineRejected, EngineUnavailable

CONCURRENCY = 32
TIMEOUT = httpx.Timeout(600.0, connect=10.0)
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

    It has passed the model's last norm, but is not scaled to length 1.

    Raises EngineRejected that quotes the question where the server refuses one.
    """

    async def ask(client: httpx.AsyncClient, question: str) -> list[float]:
        body = {**_chat(model, question), "add_generation_prompt": True, "use_activation": False}
        answer = await _post(client, "embeddings", body, question)
        return [float(f"{number:.{DIGITS}g}") for number in answer["data"][0]["embedding"]]

    return asyncio.run(_ask_all(url, questions, ask))


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


def _chat(model: str, question: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": question}]}


async def _ask_all(
    url: str, questions: Sequence[str], ask: Callable[[httpx.AsyncClient, str], Awaitable[T]]
) -> list[T]:
    turns = asyncio.Semaphore(CONCURRENCY)

    async def in_turn(client: httpx.AsyncClient, question: str) -> T:
        async with turns:
            return await ask(client, question)

    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT, trust_env=False) as client:
        return list(await asyncio.gather(*(in_turn(client, question) for question in questions)))


async def _post(client: httpx.AsyncClient, path: str, body: dict[str, Any], question: str) -> Any:
    try:
        answer = await client.post(path, json=body)
    except httpx.HTTPError as error:
        raise EngineUnavailable(f"The model server does not answer: {error!r}") from None
    if answer.is_error:
        raise EngineRejected(f"The model server refuses the prompt {question[:60]!r}: {answer.text[:300]}")
    return answer.json()
