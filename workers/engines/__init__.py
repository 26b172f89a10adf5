"""The engines by name."""

from scheduler.engine import Engine
from scheduler.settings import Settings
from workers.engines.fake import FakeEngine, FakeOptions
from workers.engines.vllm import VllmEngine


def make_engine(settings: Settings) -> Engine:
    """The engine the settings ask for; it connects on first use."""
    if settings.engine == "fake":
        return FakeEngine(FakeOptions.from_json(settings.fake_engine))
    key = settings.llm_api_key
    return VllmEngine(
        settings.llm_url,
        api_key=key.get_secret_value() if key is not None else None,
        timeout_s=settings.engine_timeout_s,
        tokenizer_path=settings.tokenizer_path,
    )
