"""`allotd record`: many samples of every query of a workload, as a pool that policies can be replayed on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scheduler.cli.output import AsJson, print_json, say
from scheduler.errors import InvalidRequest

TEMPERATURE = 0.7
"""What recorded pools mostly use; greedy samples would all be one."""
TOKENS_MAX = 512
CONCURRENCY = 16


def record(
    workload: Annotated[
        Path, typer.Argument(metavar="WORKLOAD.jsonl", help="A batch file whose lines have references; - reads stdin.")
    ],
    samples: Annotated[int, typer.Option(min=1, max=10_000, help="Samples of every query.")],
    out: Annotated[Path, typer.Option(metavar="POOL.jsonl.gz", help="The pool; what it holds already is kept.")],
    llm_url: Annotated[
        str | None, typer.Option(metavar="URL", help="The model server; that of `allotd up` by default.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Ask this model, whatever the lines name.")] = None,
    arm: Annotated[str | None, typer.Option(help="What the pool calls it; the model's name by default.")] = None,
    pool: Annotated[str | None, typer.Option(help="The pool's name; that of the file by default.")] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="Where a line does not say it.")] = TEMPERATURE,
    tokens_max: Annotated[int, typer.Option(min=1, help="Per sample, where a line does not say it.")] = TOKENS_MAX,
    seed: Annotated[int | None, typer.Option(help="For a server that samples repeatably.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Queries asked at once.")] = CONCURRENCY,
    probe: Annotated[
        Path | None,
        typer.Option(metavar="DIRECTORY", help="Then add this small model's view of every question (`allotd probe`)."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Sample every query of a workload and judge each sample. Interrupted, the same command goes on."""
    from scheduler.cli.recorder import Recorded, Wanted, record_pool  # noqa: PLC0415 (slow to import)

    if probe is not None:
        from scheduler.cli.prober import probe_pool  # noqa: PLC0415 (slow to import)
        from scheduler.probing import layer_of  # noqa: PLC0415 (as above)

        layer_of(probe, None)  # a wrong directory is told now, and not when everything is recorded
    if str(workload) != "-" and not workload.is_file():
        raise InvalidRequest(f"There is no file {workload}.")
    wanted = Wanted(
        samples=samples,
        llm_url=llm_url,
        model=model,
        arm=arm,
        pool=pool,
        temperature=temperature,
        tokens_max=tokens_max,
        seed=seed,
        concurrency=concurrency,
    )
    recorded: Recorded = record_pool(workload, out, wanted)
    if probe is not None and recorded.done:
        probe_pool(out, probe, out, None)
    told = {"out": str(out), "queries": recorded.queries, "recorded": recorded.done, "refused": recorded.refused}
    if as_json:
        print_json(told)
    else:
        say(f"{recorded.done} of {recorded.queries} queries with {samples} samples each are in {out}.")
    if recorded.refused:
        raise typer.Exit(1)
