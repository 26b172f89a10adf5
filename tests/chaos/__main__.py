"""Runs storms and prints what they injected and what was lost: `python -m tests.chaos --faults 200 --seed 1`."""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from pathlib import Path

from tests.chaos.storm import draw_faults, storm


def main() -> int:
    """Run one storm; the exit code says whether it did any damage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    logs = Path(tempfile.mkdtemp(prefix="allotd-chaos-"))
    faults = draw_faults(arguments.seed, arguments.faults)
    digest = hashlib.sha256(repr(faults).encode()).hexdigest()[:12]
    is_same = faults == draw_faults(arguments.seed, arguments.faults)
    print(
        f"seed {arguments.seed} gives the faults {digest}, drawn again the same: {is_same}; logs in {logs}", flush=True
    )
    damage = storm(arguments.seed, arguments.faults, logs, say=lambda line: print(line, flush=True))
    print(*damage.lines_of_report(), sep="\n")
    return 0 if damage.is_none else 1


if __name__ == "__main__":
    sys.exit(main())
