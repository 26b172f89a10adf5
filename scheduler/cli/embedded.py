"""How everything is run on one machine: the parts in their order, what they cost, and what the user is told."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from scheduler.cli import schema
from scheduler.cli.client import Profile, connect, store_profile, write_secret
from scheduler.cli.exits import exit_code
from scheduler.cli.output import complaints, mention, print_json, say
from scheduler.cli.parts import Address, Embedded, free_port, served_models
from scheduler.cli.price import HOW
from scheduler.supervision import Part, StopAsked, Supervisor, guarded, only_one

ADMIN_KEY = "admin.key"
ADMIN_KEY_BYTES = 32
FAKE_PRICE = {"prompt_usd_per_mtok": "0.1", "completion_usd_per_mtok": "0.4"}
"""What the fake model costs until somebody says otherwise: about what a small hosted model does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Llm:
    """The language model to be served: a name or path for vLLM, the URL of a server that runs already, or the fake."""

    name: str | None = None
    url: str | None = None
    is_fake: bool = False
    served_name: str | None = None
    is_eager: bool = False
    extra: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """One run: where it keeps its things, where it listens, what it serves, and how it talks."""

    directory: Path
    address: Address
    llm: Llm
    as_json: bool
    probe: Path | None = None
    """The directory of a small model whose view of prompts predictors may read."""

    @property
    def say(self) -> Callable[[str], None]:
        """Where sentences go: beside the JSON, where a program reads that."""
        return mention if self.as_json else say


def run(session: Session) -> int:
    """Run everything until somebody stops it; returns the exit code."""
    with only_one(session.directory, session.say):
        return guarded(lambda: exit_code(lambda: _supervise(session)))


def _supervise(session: Session) -> None:
    supervisor = Supervisor(session.directory, session.say)
    supervisor.listen()
    try:
        _start(supervisor, session)
        supervisor.watch()
    except StopAsked:
        session.say("Stopping; once more Ctrl-C kills at once.")
    finally:
        supervisor.stop()
    session.say("Stopped. What was going on goes on with the next `allotd up`.")


def _start(supervisor: Supervisor, session: Session) -> None:
    """Start the parts, wait for them, and say how to use them."""
    key, is_new = _admin_key(session.directory)
    llm_url = session.llm.url or f"http://127.0.0.1:{free_port()}/v1"
    embedded = Embedded(
        directory=session.directory,
        address=session.address,
        admin_key=key,
        llm_url=llm_url,
        probe_url=f"http://127.0.0.1:{free_port()}/v1" if session.probe else None,
    )
    model_servers = _model_server(embedded, session.llm)
    schema.upgrade(embedded.database_url)
    # All at once: a model takes minutes to load, and until it has, daemon and worker wait for it by themselves.
    parts = [embedded.valkey(), *model_servers, embedded.api(), embedded.daemon(), embedded.worker()]
    began = time.monotonic()
    if session.probe is not None:
        probe = embedded.probe(session.probe, is_eager=session.llm.is_eager)
        if session.llm.name is not None:
            # Before the other model: vLLM counts what others take of a GPU while it starts as its own.
            _bring_up(supervisor, session, [probe], began)
        else:
            parts.append(probe)
    _bring_up(supervisor, session, parts, began)
    models = served_models(llm_url)
    profile = Profile(url=session.address.url, key=key, llm_url=llm_url)
    unpriced = _price(profile, models, session)
    store_profile(profile)
    if session.as_json:
        print_json(_facts(session, models, unpriced))
    else:
        _tell(session, models, unpriced, key if is_new else None)


def _bring_up(supervisor: Supervisor, session: Session, parts: Sequence[Part], began: float) -> None:
    """Start parts beside each other, and wait for all of them."""
    for part in parts:
        supervisor.start(part)
    for part in parts:
        with _spinning(f"starting {part.name}"):
            supervisor.wait_ready(part.name)
        session.say(f"{part.name} is ready ({time.monotonic() - began:.1f} s)")


def _model_server(embedded: Embedded, llm: Llm) -> list[Part]:
    if llm.is_fake:
        return [embedded.fake()]
    if llm.name is not None:
        return [embedded.vllm(llm.name, served_name=llm.served_name, is_eager=llm.is_eager, extra=llm.extra)]
    served_models(embedded.llm_url)  # says what is wrong with it before anything else is started
    return []


def _price(profile: Profile, models: list[str], session: Session) -> list[str]:
    """The served models without a price. The fake gets one, because it is there to be tried at once."""
    with connect(profile) as api:
        priced = {price["model"] for price in api.pages("/v1/prices") if price["in_force"]}
        unpriced = [model for model in models if model not in priced]
        if not session.llm.is_fake:
            return unpriced
        for model in unpriced:
            api.post("/v1/prices", {"model": model, **FAKE_PRICE})
            prompt, completion = FAKE_PRICE.values()
            session.say(
                f"{model} now costs {prompt} USD per million prompt tokens and {completion} per completion ones."
            )
    return []


def _facts(session: Session, models: list[str], unpriced: list[str]) -> dict[str, object]:
    return {
        "url": session.address.url,
        "models": models,
        "unpriced": unpriced,
        "data_dir": str(session.directory),
        "admin_key_file": str(session.directory / ADMIN_KEY),
        "pid": os.getppid(),
    }


def _tell(session: Session, models: list[str], unpriced: list[str], new_key: str | None) -> None:
    say(f"\nallotd is at {session.address.url} and serves {', '.join(models) or 'no model'}.")
    if new_key is not None:
        say(f"The admin key, shown this once and kept in {session.directory / ADMIN_KEY}:\n{new_key}")
    say("Commands on this machine find it by themselves: `allotd tenant create NAME`, `allotd batch submit FILE`.")
    for model in unpriced:
        say(f"{model} has no price, so nothing is answered by it yet. Set one: {HOW.format(model=model)}")
    say(f"Logs are in {session.directory / 'logs'}. Ctrl-C stops everything.")


@contextmanager
def _spinning(words: str) -> Iterator[None]:
    """What is going on and for how long, where somebody looks on."""
    if not complaints().is_terminal:
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=complaints(), transient=True) as progress:
        progress.add_task(words, total=None)
        yield


def _admin_key(directory: Path) -> tuple[str, bool]:
    """The admin key, and whether it was made just now."""
    path = directory / ADMIN_KEY
    if path.exists():
        return path.read_text(encoding="ascii").strip(), False
    key = f"sk-allotd-{secrets.token_urlsafe(ADMIN_KEY_BYTES)}"
    write_secret(path, key + "\n")
    return key, True
