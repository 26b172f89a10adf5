"""`python -m scheduler.cli`: the same as the `allotd` command, for a process that must not depend on PATH."""

from scheduler.cli.main import run

if __name__ == "__main__":
    run()
