"""Starts one worker process: `python -m workers`."""

from __future__ import annotations

from scheduler.dispatch import QUEUE

ADMITTERS = "2"
"""Threads that take messages: one waits for room while the other takes the next bundle; the event loop does the work"""


def main() -> None:
    """Run a Celery worker in this process until it is told to stop."""
    from workers.app import app, settings  # noqa: PLC0415 (reads the environment)

    app.worker_main(
        [
            "worker",
            "--pool=threads",
            f"--concurrency={ADMITTERS}",
            f"--queues={QUEUE}",
            "--without-gossip",
            "--without-mingle",
            f"--loglevel={settings.log_level}",
        ]
    )


if __name__ == "__main__":
    main()
