"""How a probe server is started: a cut copy of a small model, served by vLLM for its hidden states.

Run as `python -m workers.probe_server --llm DIRECTORY --port P`; it becomes the server, as `workers.llm_server` does.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from pathlib import Path

from scheduler.errors import InvalidRequest
from scheduler.probing import layer_of
from workers.cut_model import NotCut, cut
from workers.llm_server import PROBE_GPU_SHARE, vllm_command, vllm_environment

DIGEST_DIGITS = 8
POOLER = '{"pooling_type": "LAST"}'
POOLING = ("--runner", "pooling", "--convert", "embed", "--pooler-config", POOLER, "--stream-interval", "1")
"""vLLM 0.32 fails at its first embedding where the interval of streams, which there are none of, is not 1."""
READ_TOKENS = 2048
"""Of a longer prompt the end is read: on two cores SmolLM2-135M's first 20 layers take 1.6 s for as many and
14 s for 8,192, while other queries wait."""


def cut_copy(llm: Path, layer: int, directory: Path) -> Path:
    """The model's first layers in a folder of their own, made where there is none yet; its name tells the content.

    Raises NotCut where the directory holds no model that can be cut there.
    """
    copy = directory / f"{llm.resolve().name}-layer{layer}-{digest_of(llm)}"
    if not (copy / "config.json").exists():  # it is written last
        cut(llm, layer, copy)
    return copy


def digest_of(llm: Path) -> str:
    """A few hexadecimal digits that tell a model's weights, settings and tokenizer from another's."""
    whole = hashlib.sha256()
    for path in sorted(path for path in llm.iterdir() if path.suffix in {".json", ".jinja", ".safetensors"}):
        with path.open("rb") as file:
            whole.update(f"{path.name}:{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()[:DIGEST_DIGITS]


def tokens_read(llm: Path) -> int:
    """How long a prompt the server takes: the model's context, or READ_TOKENS where that is less."""
    config = json.loads((llm / "config.json").read_text())
    return min(READ_TOKENS, int(config.get("max_position_embeddings") or READ_TOKENS))


def main() -> None:
    """Read the command line and become the server."""
    parser = argparse.ArgumentParser(
        description="Serve a model's middle layer, so that allotd sees how hard prompts are."
    )
    parser.add_argument("--llm", type=Path, required=True, help="the directory of a small model")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--layer", type=int, help="the hidden state after this many layers; two thirds by default")
    parser.add_argument("--keep-in", type=Path, default=default_directory(), help="where the cut copy is kept")
    parser.add_argument("--served-name", help="the view's name; the model's and the layer by default")
    parser.add_argument("--eager", action="store_true", help="start sooner, run slower")
    parser.add_argument("--gpu-share", type=float, default=PROBE_GPU_SHARE, help="the part of a GPU that it may take")
    parser.add_argument("extra", nargs="*", help="further arguments of vLLM, after --")
    options = parser.parse_args()
    try:
        copy = cut_copy(options.llm, layer_of(options.llm, options.layer), options.keep_in)
    except (NotCut, InvalidRequest) as error:
        parser.error(str(error))
    command = vllm_command(
        str(copy),
        options.port,
        served_name=options.served_name or copy.name,
        host=options.host,
        eager=options.eager,
        gpu_share=options.gpu_share,
        extra=(*POOLING, "--max-model-len", str(tokens_read(copy)), *options.extra),
    )
    os.execvpe(command[0], command, vllm_environment(str(copy)))  # noqa: S606 - to become it is the point


def default_directory() -> Path:
    """Where a desktop keeps what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "allotd"


if __name__ == "__main__":
    main()
