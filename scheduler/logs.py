"""How a process logs: constant events with fields, on stderr, for people or for machines; secrets never."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import structlog

from scheduler.settings import Settings

Event = MutableMapping[str, Any]
Processor = Callable[[Any, str, Event], Mapping[str, Any] | str | bytes | bytearray | tuple[Any, ...]]

HIDDEN = "[hidden]"
CHATTY = ("httpx", "httpcore", "kombu", "amqp", "celery.worker.strategy", "celery.app.trace")
"""Libraries that log every request or message at INFO."""
SECRET_NAMES = frozenset(
    {"authorization", "api_key", "admin_key", "llm_api_key", "key", "secret", "password", "token", "cookie"}
)
SECRET_TEXT = re.compile(r"sk-[A-Za-z0-9_-]{8,}|(?i:bearer)\s+[^\s\"']+|(?<=://)[^/\s@]*:[^/\s@]+(?=@)")
"""API keys of our shape and others', bearer credentials, and the user and password of a URL."""


def configure_logging(settings: Settings) -> None:
    """Send this process's logs, those of libraries too, through one formatter; calling it again replaces it."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.ExtraAdder(),
    ]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=_rendering(settings)))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)
    for chatty in CHATTY:
        logging.getLogger(chatty).setLevel(max(logging.WARNING, root.level))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared[:-1],
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def hide_secrets(_logger: Any, _method: str, event: Event) -> Event:
    """Replace what must not be read in a log, by a field's name and by what a text looks like."""
    for name, value in event.items():
        event[name] = HIDDEN if name.lower() in SECRET_NAMES else without_secrets(value)
    return event


def without_secrets(value: Any) -> Any:
    """The value with every secret in it hidden."""
    if isinstance(value, str):
        return SECRET_TEXT.sub(HIDDEN, value)
    if isinstance(value, Mapping):
        return {k: HIDDEN if str(k).lower() in SECRET_NAMES else without_secrets(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item) for item in value]
    return value


def _rendering(settings: Settings) -> list[Any]:
    if settings.log_format == "json":
        renderer: list[Any] = [
            structlog.processors.format_exc_info,
            hide_secrets,
            structlog.processors.JSONRenderer(default=str),
        ]
    else:
        renderer = [
            structlog.processors.format_exc_info,
            hide_secrets,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
        ]
    return [structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer]
