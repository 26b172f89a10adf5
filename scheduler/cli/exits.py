"""How a command ends: whatever goes wrong becomes one clear line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress

import httpx

from scheduler.cli.output import complain
from scheduler.errors import InvalidRequest, SchedulerError

FAILED = 1
USAGE = 2
INTERRUPTED = 130
"""What a shell expects of a command ended by Ctrl-C."""
TRACEBACK = "ALLOTD_TRACEBACK"


def exit_code(command: Callable[[], object]) -> int:
    """Run a command; whatever goes wrong becomes one clear line on stderr and the code to exit with."""
    try:
        command()
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else FAILED if left.code else 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _silence_stdout()
        return FAILED
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        complain(_sentence(error))
        return USAGE if isinstance(error, InvalidRequest) else FAILED
    return 0


def _sentence(error: Exception) -> str:
    if isinstance(error, SchedulerError):
        return error.message
    if isinstance(error, OSError | httpx.HTTPError) and str(error):
        return str(error)
    return f"Something unexpected went wrong ({type(error).__name__}: {error}). {TRACEBACK}=1 shows where."


def _silence_stdout() -> None:
    """Whoever read our output has left; Python would complain once more while flushing at exit."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
