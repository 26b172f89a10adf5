"""A copy of a model without its last layers, for reading hidden states of a middle one."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
WEIGHTS = "model.safetensors"
PER_LAYER = ("layer_types",)
"""Lists in a configuration that have an entry per layer."""


class NotCut(Exception):
    """The directory holds no model that can be cut."""


def cut(llm: Path, layers: int, out: Path) -> None:
    """Write the model's first `layers` layers to `out`. Raises NotCut where it has fewer, or no sound weights."""
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415 (it brings torch)
    from safetensors.torch import save_file  # noqa: PLC0415

    files = sorted(llm.glob("*.safetensors"))
    if not files or not (llm / "config.json").is_file():
        raise NotCut(f"{llm} holds no config.json with safetensors beside it.")
    config = cut_config(json.loads((llm / "config.json").read_text()), layers)
    out.mkdir(parents=True, exist_ok=True)
    kept: dict[str, Any] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as weights:
                names = [name for name in weights.keys() if is_kept(name, layers)]  # noqa: SIM118 (it is no dict)
                kept |= {name: weights.get_tensor(name) for name in names}
        except SafetensorError as error:
            raise NotCut(f"{file} cannot be read ({error}); was it downloaded whole, and not as a pointer?") from None
    save_file(kept, out / WEIGHTS, metadata={"format": "pt"})
    for beside in llm.iterdir():
        if beside.is_file() and ".safetensors" not in beside.name and beside.name != "config.json":
            shutil.copy(beside, out / beside.name)
    (out / "config.json").write_text(json.dumps(config))


def cut_config(config: dict[str, Any], layers: int) -> dict[str, Any]:
    """The configuration of the cut model. Raises NotCut where the whole one has not more layers."""
    there = config.get("num_hidden_layers")
    if not isinstance(there, int) or not 0 < layers < there:
        raise NotCut(f"The model has {there} layers; a layer between 1 and the one before its last can be read.")
    shorter = {name: config[name][:layers] for name in PER_LAYER if isinstance(config.get(name), list)}
    return {**config, **shorter, "num_hidden_layers": layers}


def is_kept(name: str, layers: int) -> bool:
    """Whether a weight belongs to no layer, or to one of the first."""
    found = LAYER.search(name)
    return found is None or int(found[1]) < layers
