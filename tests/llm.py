"""A real vLLM server with a real small model, one for the whole run: the fixture `llm`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from ops.demo.smollm import fetch_smollm

NAME = "smollm2-135m"
START_TIMEOUT_S = 280.0
STOP_TIMEOUT_S = 20.0


@dataclass(frozen=True, kw_only=True, slots=True)
class LlmServer:
    """A running model server; `url` ends in /v1."""

    url: str
    name: str
    directory: Path
    pid: int


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need the model server go last: it takes a minute to start, which passes while the others run."""
    items.sort(key=needs_llm)


def needs_llm(item: pytest.Item) -> bool:
    """Whether a test speaks to the model server."""
    return item.get_closest_marker("vllm") is not None


@pytest.fixture(scope="session", autouse=True)
def starting_llm(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Future[LlmServer] | None]:
    """vLLM on its way up from the first test on, where any test of the run needs it, and gone with the run."""
    if not any(map(needs_llm, request.session.items)):
        yield None
        return
    log = tmp_path_factory.mktemp("llm") / "vllm.log"
    with ExitStack() as stack, ThreadPoolExecutor(1) as thread:
        yield thread.submit(stack.enter_context, llm_server(log))


@pytest.fixture(scope="session")
def llm(starting_llm: Future[LlmServer] | None) -> LlmServer:
    """vLLM serving SmolLM2-135M-Instruct, one for the whole run."""
    assert starting_llm is not None, "a test that needs the model server is marked `vllm`"
    return starting_llm.result()


@contextmanager
def llm_server(log: Path, *extra: str, port: int | None = None) -> Iterator[LlmServer]:
    """Start a server in a session of its own, on a free port or the given one; end all of the session's processes."""
    directory = fetch_smollm()
    port = port or free_port()
    command = [sys.executable, "-m", "workers.llm_server", "--llm", str(directory), "--served-name", NAME, "--eager"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--", *extra],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}/health", process, log)
        yield LlmServer(url=f"http://127.0.0.1:{port}/v1", name=NAME, directory=directory, pid=process.pid)
    finally:
        end_session(process)


def wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for the server's first sign of life."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=5) as response:
            if response.status == 200:
                return
        time.sleep(0.5)
    tail = log.read_text(errors="replace")[-4000:]
    raise AssertionError(f"The model server did not start (exit status {process.poll()}):\n{tail}")


def end_session(process: subprocess.Popen[bytes]) -> None:
    """Ask the server to stop, then kill whatever of its session is left."""
    process.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT_S)
    left = processes_of_session(process.pid)
    for one in left:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(left, timeout=STOP_TIMEOUT_S)
    process.wait(STOP_TIMEOUT_S)


def processes_of_session(session: int) -> list[psutil.Process]:
    """The living processes of a session."""
    found = []
    for one in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getsid(one.pid) == session and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
    return found


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
