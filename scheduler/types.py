"""The values that cross boundaries: small, frozen, keyword-only. Changing one means making another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

Json = Mapping[str, Any]

SETTING_SIGN = "@"
"""Stands between a strategy and its setting."""

GREEDY_BELOW = 1e-5
"""Below this temperature vLLM does not sample at all (its _SAMPLING_EPS)."""


class Verdict(StrEnum):
    """What a verifier compares and how; each also says how an answer is read out of a completion."""

    EXACT = "exact"
    NUMERIC = "numeric"
    MATH = "math"
    REGEX = "regex"
    CHOICE = "choice"
    JSON_SCHEMA = "json_schema"


class AlertKind(StrEnum):
    """What can be wrong; `ops/alerts.md` says what to do about each."""

    CAP_SOFT = "cap_soft"
    CAP_REACHED = "cap_reached"
    ENGINE_QUARANTINED = "engine_quarantined"
    PREDICTOR_UNUSABLE = "predictor_unusable"
    PROBE_UNAVAILABLE = "probe_unavailable"
    LEDGER_UNBALANCED = "ledger_unbalanced"


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifierSpec:
    """How a query's answers are read and judged; without what it `needs`, it can read answers but not judge them.

    `reference` is the right answer for `exact`, `numeric`, `math` and `choice`, the pattern for `regex`, and the JSON
    text of the schema for `json_schema`.
    """

    kind: Verdict
    reference: str | None = None

    @property
    def can_judge(self) -> bool:
        """Whether an answer can be called right or wrong."""
        return self.reference is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """A small model's view of a prompt: the hidden state of its last token, as little-endian 32-bit floats.

    `view` names the model and the layer. Vectors of two views have nothing in common.
    """

    view: str
    vector: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """One request of a tenant, as strategies and predictors see it.

    `prompt_tokens` is the estimate, `prompt_tokens_max` what money is held for: a server very rarely counts more.
    """

    id: int
    model: str
    messages: tuple[Json, ...]
    prompt_tokens: int
    prompt_tokens_max: int
    verifier: VerifierSpec | None = None
    task: str | None = None
    tenant_id: str | None = None
    temperature: float | None = None
    params: Json = field(default_factory=dict)
    probe: Probe | None = None

    @property
    def text(self) -> str:
        """The text of the conversation, message by message."""
        return text_of(self.messages)

    @property
    def is_greedy(self) -> bool:
        """Whether every sample would be the same one: the server always takes the likeliest token."""
        return (self.temperature is not None and self.temperature < GREEDY_BELOW) or self.params.get("top_k") == 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """A model together with a strategy: one way of answering. A strategy may name its setting: `asc@0.9`."""

    model: str
    strategy: str

    @property
    def kind(self) -> str:
        """The strategy without its setting."""
        return self.strategy.partition(SETTING_SIGN)[0]

    @property
    def setting(self) -> float | None:
        """The strategy's setting, where it names one."""
        text = self.strategy.partition(SETTING_SIGN)[2]
        return float(text) if text else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Lessons:
    """What was learned from samples of one model; without any, failures are counted and a vote is weighed by its share.

    `failing` are the weights of what samples show (`scheduler.core.lessons.shown`) by which failures move the log-odds
    of a prior, and `worth_log` the logarithm of the factor on what that prior is worth in samples. `leading` are an
    intercept and the weights of `scheduler.core.lessons.voted`: a logistic regression on whether the leader of a vote
    is right. `voting` are the weights of what a sample shows beside its answer (`scheduler.core.said`), by which its
    vote counts more or less. `logprob_usual` is a sample's usual mean log-probability.
    """

    logprob_usual: float = 0.0
    worth_log: float = 0.0
    failing: tuple[float, ...] = ()
    leading: tuple[float, ...] = ()
    voting: tuple[float, ...] = ()


COUNTS_ONLY = Lessons()
"""The rule that lessons have to beat."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How one query will be answered, and the most it may cost.

    `price` is the window's shadow price: expected correct answers that one nano-dollar must buy; 0 stops nothing.
    The rest is what stopping weighs against it: `alpha` and `beta` are the belief in one sample's success,
    `prompt_nanousd` is what a wave costs beside its samples, and `sample_nanousd` what each of those is expected to.
    `lessons` say what samples show beyond their number, beside the expected length `tokens_mean`. Where it `escalates`,
    another model is asked after this one in vain.
    """

    query_id: int
    arm: Arm
    samples_max: int
    tokens_max: int
    ceiling_nanousd: int | None
    price: float = 0.0
    alpha: float = 1.0
    beta: float = 1.0
    prompt_nanousd: float = 0.0
    sample_nanousd: float = 0.0
    tokens_mean: float | None = None
    lessons: Lessons = COUNTS_ONLY
    escalates: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What is believed of a query under one arm before anything is spent.

    `alpha` and `beta` are the parameters of a Beta distribution of the chance that one sample is right;
    `tokens_p50` and `tokens_p90` are quantiles of a completion's length in tokens, `tokens_mean` its mean where known.
    """

    alpha: float
    beta: float
    tokens_p50: int
    tokens_p90: int
    version: str
    tokens_mean: float | None = None

    @property
    def tokens_expected(self) -> float:
        """A completion's expected length."""
        return self.tokens_mean if self.tokens_mean is not None else float(self.tokens_p50)

    @property
    def success_rate(self) -> float:
        """The mean of the Beta distribution."""
        return self.alpha / (self.alpha + self.beta)


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """Tokens of one request to an engine, as the server reports them. `completion` includes `reasoning`."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    reasoning: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            prompt=self.prompt + other.prompt,
            cached=self.cached + other.cached,
            completion=self.completion + other.completion,
            reasoning=self.reasoning + other.reasoning,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One completion of one query.

    `answer` is what the verifier reads out of `text`, canonicalised so that equal answers are equal strings; None where
    nothing could be read. `correct` is known only where the query carries a reference; strategies may look at it only
    through `Score`. `logprob_mean` is the mean log-probability per token. `finish_reason` is the server's word, or
    "aborted" for output that was cut by us and is nevertheless paid for.
    """

    text: str
    tokens: int
    answer: str | None = None
    reasoning_tokens: int = 0
    finish_reason: str = "stop"
    logprob_mean: float | None = None
    message: Json | None = None
    correct: bool | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a strategy returns: the chosen sample, why, and how sure it is (None where it cannot say)."""

    chosen: Sample | None
    because: str
    confidence: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Llm:
    """A served language model.

    `template_tokens` is what its chat template adds to a chat beyond what `scheduler.tokens` counts of it (a default
    system prompt, say), and `template_system_tokens` what it adds where the chat has a system message of its own; None
    where the server does not tell.
    """

    name: str
    context_tokens: int
    tokenizer_path: str | None = None
    template_tokens: int | None = None
    template_system_tokens: int | None = None


def text_of(messages: Iterable[Json]) -> str:
    """The text of a conversation, message by message."""
    parts: list[str] = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, str):
            parts.append(content)
        elif isinstance(content, list):
            parts += [str(part.get("text", "")) for part in content if isinstance(part, dict)]
    return "\n".join(parts)
