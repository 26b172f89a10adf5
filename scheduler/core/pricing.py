"""What tokens cost. Money is a whole number of nano-dollars (1e-9 USD); no float ever holds any."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal, InvalidOperation

from scheduler.errors import InvalidRequest
from scheduler.types import Usage

NANOUSD_PER_USD = 10**9
NANOUSD_PER_TOKEN_PER_USD_PER_MTOK = 1000
"""1 USD per million tokens is 1e9 nano-dollars for 1e6 tokens."""
USD_PER_MTOK_MAX = Decimal(1_000_000)
"""One dollar for one token; the dearest models of 2026 ask 600 USD per million, so more is a slip of the pen."""
USD_MAX = Decimal(1_000_000_000)
"""A billion dollars: its nano-dollars still fit a database's 64-bit integer nine times over."""
AMOUNT_CHARACTERS_MAX = 40
"""More than any amount within the limits needs; longer text is refused before it is parsed."""
_EXACT = Context(prec=2 * AMOUNT_CHARACTERS_MAX)


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """What a model's tokens cost, in nano-dollars per token; `id` is the price row that entries name."""

    id: int
    model: str
    prompt_nanousd: int
    cached_nanousd: int
    completion_nanousd: int

    def cost_nanousd(self, usage: Usage) -> int:
        """What this usage costs. Cached tokens are part of the prompt and billed at their own price."""
        cached = min(usage.cached, usage.prompt)
        return (
            (usage.prompt - cached) * self.prompt_nanousd
            + cached * self.cached_nanousd
            + usage.completion * self.completion_nanousd
        )

    def most_nanousd(self, prompt_tokens: int, n: int, tokens_max: int) -> int:
        """The most that a wave of `n` samples can cost: its prompt once, and every sample to its last token."""
        dearest_prompt = max(self.prompt_nanousd, self.cached_nanousd)
        return prompt_tokens * dearest_prompt + n * tokens_max * self.completion_nanousd


def nanousd_per_token(usd_per_mtok: str | Decimal | int) -> int:
    """The nano-dollars per token of a price in USD per million tokens, exactly.

    Raises InvalidRequest where the price is no number, negative, absurd, or no whole number of nano-dollars per token.
    """
    price = _amount(usd_per_mtok, what="price")
    if price < 0:
        raise InvalidRequest(f"The price {usd_per_mtok} is negative; give USD per million tokens, 0 or more.")
    if price > USD_PER_MTOK_MAX:
        raise InvalidRequest(
            f"The price {usd_per_mtok} is above {USD_PER_MTOK_MAX} USD per million tokens; "
            "check that it is not meant per token."
        )
    exact = _EXACT.multiply(price, NANOUSD_PER_TOKEN_PER_USD_PER_MTOK)
    below = int(exact.to_integral_value(rounding=ROUND_FLOOR))
    if exact != below:
        lower, upper = (_plain(Decimal(n) / NANOUSD_PER_TOKEN_PER_USD_PER_MTOK) for n in (below, below + 1))
        raise InvalidRequest(
            f"The price {usd_per_mtok} is no multiple of 0.001 USD per million tokens, which is one nano-dollar per "
            f"token; the nearest two are {lower} and {upper}.",
            lower=lower,
            upper=upper,
        )
    return below


def parse_usd(text: str | Decimal | int) -> int:
    """The nano-dollars of an amount in USD, exactly.

    Raises InvalidRequest where it is no number, not positive, absurd, or finer than a nano-dollar.
    """
    amount = _amount(text, what="amount")
    if amount <= 0:
        raise InvalidRequest(f"The amount {text} must be more than 0 USD.", amount_usd=amount)
    if amount > USD_MAX:
        raise InvalidRequest(f"The amount {text} is above {USD_MAX} USD.")
    exact = _EXACT.multiply(amount, NANOUSD_PER_USD)
    if exact != exact.to_integral_value():
        raise InvalidRequest(f"The amount {text} has more than 9 decimals; the smallest unit is 0.000000001 USD.")
    return int(exact)


def usd_per_mtok(nanousd_per_token: int) -> str:
    """A price per token as USD per million tokens, exact."""
    whole, rest = divmod(nanousd_per_token, NANOUSD_PER_TOKEN_PER_USD_PER_MTOK)
    return f"{whole}.{rest:03}"


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuPrice:
    """What tokens must cost so that they pay for the GPUs that make them, in nano-dollars per token, rounded up."""

    prompt_nanousd: int
    completion_nanousd: int


def price_from_gpus(
    usd_per_gpu_hour: str | Decimal | int,
    gpus: int,
    *,
    completion_tokens_per_s: Decimal,
    prompt_tokens_per_s: Decimal,
    completion_weight: int,
) -> GpuPrice:
    """The prices at which so many tokens per second pay for the GPUs.

    A completion token counts as `completion_weight` prompt tokens: it is made one step at a time, while prompts are
    read in parallel. Raises InvalidRequest where nothing would pay for anything.
    """
    hourly = parse_usd(usd_per_gpu_hour) * gpus
    weighted = completion_tokens_per_s * completion_weight + prompt_tokens_per_s
    if gpus < 1 or completion_weight < 1 or weighted <= 0 or min(completion_tokens_per_s, prompt_tokens_per_s) < 0:
        raise InvalidRequest("GPUs, the weight and tokens per second must be more than 0.")
    per_prompt_token = _EXACT.divide(Decimal(hourly), 3600 * weighted)
    prompt, completion = (
        int(share.to_integral_value(rounding=ROUND_CEILING))
        for share in (per_prompt_token, _EXACT.multiply(per_prompt_token, completion_weight))
    )
    for nanousd in (prompt, completion):
        nanousd_per_token(usd_per_mtok(nanousd))  # refuses what is absurd
    return GpuPrice(prompt_nanousd=prompt, completion_nanousd=completion)


def format_usd(nanousd: int) -> str:
    """The amount in USD with two decimals, or six or nine where fewer would lose a nano-dollar."""
    sign = "-" if nanousd < 0 else ""
    whole, rest = divmod(abs(nanousd), NANOUSD_PER_USD)
    decimals = f"{rest:09}"
    shown = next(places for places in (2, 6, 9) if not decimals[places:].strip("0"))
    return f"{sign}{whole}.{decimals[:shown]} USD"


def _amount(value: str | Decimal | int, *, what: str) -> Decimal:
    """The value as a finite Decimal within sane bounds of length and exponent."""
    text = str(value).strip()
    refusal = InvalidRequest(f"The {what} {text[:AMOUNT_CHARACTERS_MAX]!r} is no number; write it like 0.25.")
    if len(text) > AMOUNT_CHARACTERS_MAX or not text.isascii() or "_" in text:
        raise refusal
    try:
        amount = Decimal(text)
    except InvalidOperation:
        raise refusal from None
    if not amount.is_finite():
        raise refusal
    if amount and not -AMOUNT_CHARACTERS_MAX <= amount.adjusted() <= AMOUNT_CHARACTERS_MAX:
        raise InvalidRequest(f"The {what} {text} is out of range.")
    return amount


def _plain(number: Decimal) -> str:
    """The number without an exponent or needless zeros."""
    return f"{number.normalize():f}"
