"""What the daemon does beside its ticks, each in a thread of its own that nothing waits for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def beside(work: Callable[[threading.Event], None], *, name: str, stop_s: float) -> Iterator[None]:
    """Run `work` beside whatever happens in this context, until its event is set.

    At the end it has `stop_s` to return; the process may end under it.
    """
    stop = threading.Event()
    thread = threading.Thread(target=work, args=(stop,), name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(stop_s)
