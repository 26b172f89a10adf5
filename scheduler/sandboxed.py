"""The inside of a sandbox: reads jobs from its standard input, a JSON line each, and answers each with a JSON line.

A job may use two seconds of CPU and two gigabytes. Beyond that the kernel ends the process: sympy computes 9**9**9
inside one instruction of Python, which no exception, signal handler or thread can interrupt.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

import jsonschema
import math_verify
import sympy
from jsonschema_specifications import REGISTRY

CPU_S = 2.0
"""CPU time, not wall time: a busy machine must not change a verdict. Ordinary parses take 5 to 50 ms."""
MEMORY_BYTES = 2 * 1024**3
"""Address space; sympy and its parsers map about a quarter of it."""
CANONICAL_CHARACTERS_MAX = 2_000
_PLAIN_PI = re.compile(r"(?<![\\A-Za-z])pi(?![A-Za-z])")
_PLAIN_ROOT = re.compile(r"(?<![\\A-Za-z])sqrt\(([^()]*)\)")


def canonical(expression: str) -> str | None:
    """The expression in the form that equal expressions share as far as expanding and simplifying goes."""
    parsed = _parsed(expression)
    if parsed is None:
        return None
    if isinstance(parsed, sympy.Equality) and isinstance(parsed.lhs, sympy.Symbol):
        parsed = parsed.rhs  # "x = 5" answers 5
    if isinstance(parsed, sympy.Expr):
        parsed = sympy.expand(parsed.doit())
        if not parsed.free_symbols:
            parsed = sympy.simplify(parsed)
    text = str(sympy.sstr(parsed))
    return text if len(text) <= CANONICAL_CHARACTERS_MAX else None


def is_equal(expression: str, reference: str) -> bool:
    """Whether math-verify takes the two for the same."""
    gold, answer = _parsed(reference), _parsed(expression)
    if gold is None or answer is None:
        return False
    return bool(math_verify.verify(gold, answer, timeout_seconds=None))


def fits_schema(value: str, schema: str) -> bool:
    """Whether a JSON value is valid under a schema. References lead nowhere but into the schema itself."""
    parsed = json.loads(schema)
    validator = jsonschema.validators.validator_for(parsed, default=jsonschema.Draft202012Validator)
    return bool(validator(parsed, registry=REGISTRY).is_valid(json.loads(value)))


JOBS: dict[str, Callable[..., object]] = {"canonical": canonical, "is_equal": is_equal, "fits_schema": fits_schema}


def run() -> None:
    """Serve jobs until the input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whatever a library prints is no answer
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, whose end closes the input
    for line in sys.stdin:
        job, *arguments = json.loads(line)
        answers.write(json.dumps(_limited(JOBS[job], arguments)) + "\n")


def _limited(job: Callable[..., object], arguments: list[str]) -> object:
    """The job's result; None where it fails. Out of CPU time the process ends here."""
    signal.setitimer(signal.ITIMER_PROF, CPU_S)
    try:
        return job(*arguments)
    except MemoryError:
        sys.exit(1)
    except Exception:  # whatever a parser raises on nonsense, the nonsense has no answer
        return None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _parsed(expression: str) -> Any:
    """The expression as sympy has it; None where math-verify cannot read it."""
    latex = _PLAIN_PI.sub(r"\\pi ", _PLAIN_ROOT.sub(r"\\sqrt{\1}", expression.replace("**", "^")))
    parsed = math_verify.parse(f"\\boxed{{{latex}}}", parsing_timeout=None, fallback_mode="no_fallback")
    return parsed[0] if parsed else None


if __name__ == "__main__":
    run()
