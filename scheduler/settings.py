"""Everything that can be configured, read once from the environment (ALLOTD_*) and checked here."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from scheduler.errors import InvalidRequest

MEBIBYTE = 1024 * 1024


class Settings(BaseSettings):
    """One process's configuration. Every field is the environment variable ALLOTD_<FIELD>."""

    model_config = SettingsConfigDict(env_prefix="ALLOTD_", frozen=True, extra="ignore")

    database_url: str = "sqlite:///allotd.db"
    broker_url: str = "redis://127.0.0.1:6379/0"
    llm_url: str = Field(default="http://127.0.0.1:8000/v1", pattern=r"[^\s,]")
    """The model server that a worker asks; or several, separated by commas, of one model or of many."""
    llm_api_key: SecretStr | None = None
    probe_url: str | None = Field(default=None, pattern=r"^(https?://[^\s,]+)?$")
    """A probe server (`python -m workers.probe_server`), whose view of each prompt the daemon lets predictors read."""
    engine: str = Field(default="vllm", pattern="^(vllm|fake)$")
    fake_engine: str | None = None
    """Options of the fake engine as JSON; see workers.engines.fake."""
    admin_key: SecretStr | None = Field(default=None, min_length=12)
    """Whoever has it may do everything, so make it long and by chance; `allotd up` makes one of 256 bits."""

    # Sizes
    window_size: int = Field(default=256, ge=1)
    """Queries allocated together: enough for one shadow price to mean something, few enough that nobody waits long."""
    bundle_size: int = Field(default=16, ge=1)
    in_flight_max: int = Field(default=256, ge=1)
    """Queries one worker process drives at once; vLLM's own default is 256 sequences per step."""
    samples_max: int = Field(default=8, ge=1, le=1024)
    """The default sample budget of best_of_n and self_consistency; most published gains come below it."""
    samples_limit: int = Field(default=256, ge=1)
    tokens_max: int = Field(default=512, ge=1)
    """Completion tokens per sample where the request names no limit."""

    # Time
    tick_s: float = Field(default=0.2, gt=0)
    heartbeat_s: float = Field(default=5.0, gt=0)
    lease_s: float = Field(default=15.0, gt=0)
    """A worker silent for this long is taken for dead: three heartbeats."""
    redispatch_s: float = Field(default=30.0, gt=0)
    """A message not claimed for this long is sent again."""
    engine_timeout_s: float = Field(default=600.0, gt=0)
    """How long a wave may take; what it has generated until then is kept and paid."""
    engine_silence_s: float = Field(default=300.0, gt=0)
    """How long a wave may bring nothing after its first tokens; vLLM is silent while it preempts it for others."""
    verify_every_s: float = Field(default=3600.0, gt=0)
    """How often the daemon looks through the ledger; also when it begins to lead."""
    probe_patience_s: float = Field(default=2.0, ge=0, le=3600)
    """How long a query waits for a live probe server to read it, from when it was taken in; chats do not wait."""
    attempts_max: int = Field(default=5, ge=1)
    """Attempts that may die under a query before it is called failed: it may be what kills them."""

    # Learning
    explore_share: float = Field(default=0.02, ge=0, le=1)
    """Queries that get the plain budget by lot: without them, nothing is known of what was not chosen."""
    predictors_dir: Path = Path("predictors")
    """Where fitted predictors are kept; every daemon must see the same folder."""
    retune_every_s: float = Field(default=6 * 3600.0, gt=0)
    """How often a challenger is fitted where there is something new to learn from."""
    retune_examples_min: int = Field(default=200, ge=20)
    """Settled queries with known correctness that fitting needs; of fewer, plain priors make as much."""

    # Webhooks
    webhooks_private: bool = False
    """Whether webhooks may lead to this machine and its private networks: who may set one could else reach them."""
    webhook_timeout_s: float = Field(default=10.0, gt=0)
    webhook_tries: int = Field(default=10, ge=1)
    """Tries before a delivery is given up: with waits that grow fourfold, about a day."""

    # Limits on input
    file_bytes_max: int = Field(default=200 * MEBIBYTE, ge=1)
    line_bytes_max: int = Field(default=4 * MEBIBYTE, ge=1)
    lines_max: int = Field(default=50_000, ge=1)
    body_bytes_max: int = Field(default=4 * MEBIBYTE, ge=1)
    body_grace_s: float = Field(default=30.0, gt=0)
    """How long a body may take beside what its size allows; and a request's head."""
    body_bytes_per_s_min: int = Field(default=16 * 1024, ge=1)
    """A body that arrives more slowly than this holds a place for nobody's good; a mobile phone is faster."""
    uploads_max: int = Field(default=16, ge=1)
    """Uploads one API process takes at once: each may fill the disk with a whole file before it is refused."""
    uploads_per_tenant_max: int = Field(default=4, ge=1)
    connections_max: int = Field(default=2000, ge=1)
    """Connections one API process holds; with the descriptors of their database sessions under Linux's usual 4096."""

    log_format: str = Field(default="console", pattern="^(console|json)$")
    log_level: str = Field(default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$")
    tokenizer_path: Path | None = None
    """A worker's copy of its model's `tokenizer.json`, or of the folder that holds it, where the model server reads its
    own from another machine's disk."""

    @property
    def llm_urls(self) -> tuple[str, ...]:
        """The addresses of the model servers."""
        return addresses(self.llm_url)

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.bundle_size > self.in_flight_max:
            raise ValueError("bundle_size must not exceed in_flight_max: a worker starts a bundle at once")
        if self.lease_s < 2 * self.heartbeat_s:
            raise ValueError("lease_s must be at least two heartbeats, or every worker looks dead")
        if self.tokenizer_path is not None and len(self.llm_urls) > 1:
            raise ValueError("tokenizer_path is one model's, which prompts of the others would be counted by; unset it")
        return self

    @classmethod
    def from_env(cls) -> Self:
        """Read the environment. Raises InvalidRequest that names every wrong variable."""
        try:
            return cls()
        except ValidationError as error:
            faults = "; ".join(f"{_variable(e['loc'])}: {e['msg']}" for e in error.errors())
            raise InvalidRequest(f"Configuration is wrong: {faults}") from None


def addresses(text: str) -> tuple[str, ...]:
    """Addresses separated by commas or blanks, each once and without a slash at its end."""
    return tuple(dict.fromkeys(each.rstrip("/") for each in text.replace(",", " ").split()))


def one_address(text: str) -> str:
    """The address that a text holds. Raises InvalidRequest where it holds none, or several."""
    found = addresses(text)
    if len(found) != 1:
        raise InvalidRequest(f"'{text}' names {len(found)} model servers; name one with --llm-url URL.")
    return found[0]


def _variable(location: tuple[int | str, ...]) -> str:
    return f"ALLOTD_{str(location[0]).upper()}" if location else "ALLOTD_*"
