"""The engines by name."""

from scheduler.engine import Engine
from scheduler.settings import Settings
from workers.engines.fake import FakeEngine, FakeOptions
from workers.engines.several import SeveralServers
from workers.engines.vllm import VllmEngine


def make_engine(settings: Settings) -> Engine:
    """The engine the settings ask for; it connects on first use."""
    if settings.engine == "fake":
        return FakeEngine(FakeOptions.from_json(settings.fake_engine))
    servers = {url: _server(url, settings) for url in settings.llm_urls}
    return next(iter(servers.values())) if len(servers) == 1 else SeveralServers(servers)


def _server(url: str, settings: Settings) -> VllmEngine:
    key = settings.llm_api_key
    return VllmEngine(
        url,
        api_key=key.get_secret_value() if key is not None else None,
        timeout_s=settings.engine_timeout_s,
        silence_s=settings.engine_silence_s,
        tokenizer_path=settings.tokenizer_path,
    )
