"""`allotd probe`: what a small model makes of a pool's questions, for predictors to learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scheduler.cli.output import AsJson, print_json, say


def probe(
    pool: Annotated[Path, typer.Argument(metavar="POOL", help="A recorded pool.")],
    llm: Annotated[Path, typer.Option(metavar="DIRECTORY", help="A small model; it need not be the served one.")],
    out: Annotated[Path, typer.Option(metavar="POOL.jsonl.gz", help="The pool with probes; may be the same file.")],
    layer: Annotated[
        int | None, typer.Option(min=1, help="The hidden state after this many layers; two thirds of them by default.")
    ] = None,
    llm_url: Annotated[
        str | None, typer.Option(metavar="URL", help="A server of the same model that runs already, for its surprise.")
    ] = None,
    vllm_arguments: Annotated[list[str] | None, typer.Argument(metavar="[-- VLLM_ARGUMENTS]...")] = None,
    as_json: AsJson = False,
) -> None:
    """Add a hidden state and log-probability statistics of every question to a pool, with a real vLLM of its own."""
    from scheduler.cli.parts import served_models  # noqa: PLC0415 (slow to import)
    from scheduler.cli.prober import Served, probe_pool  # noqa: PLC0415
    from scheduler.settings import one_address  # noqa: PLC0415

    url = one_address(llm_url) if llm_url else None
    served = Served(url=url, model=served_models(url)[0]) if url else None
    lines, asked = probe_pool(pool, llm, out, layer, served, vllm_arguments or ())
    if as_json:
        print_json({"out": str(out), "lines": lines, "questions_asked": asked})
    else:
        say(f"{lines} lines with probes are in {out}; {asked} questions were asked.")
