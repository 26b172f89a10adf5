"""How often the daemon looks: at once where there is work, and less and less often where there is none."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, repeat

import pytest

from scheduler.daemon import SELDOM, SLOWEST, Daemon, next_wait
from scheduler.dispatch import make_celery
from scheduler.settings import Settings
from scheduler.wiring import Services
from tests.factories import NOW, new_sessions


@dataclass(slots=True)
class Counting(Daemon):
    """Counts its looks for what can be resumed."""

    looks: int = 0

    def resume(self) -> bool:
        """Nothing ever can."""
        self.looks += 1
        return False


def test_waits_grow_while_there_is_nothing_to_do_and_not_past_their_limit() -> None:
    waits = list(accumulate(repeat(False, 5), lambda wait, busy: next_wait(wait, busy=busy), initial=1.0))

    assert waits == sorted(waits)
    assert waits[-1] == SLOWEST


def test_work_brings_the_usual_wait_back() -> None:
    assert next_wait(SLOWEST, busy=True) == 1.0


@pytest.mark.parametrize("passed", [1.0, SLOWEST])
def test_what_is_looked_for_seldom_is_looked_for_as_often_however_long_the_waits(
    passed: float,
) -> None:
    ticks = int(20 * SELDOM / passed)
    with new_sessions() as sessions:
        services = Services(settings=Settings(), sessions=sessions, clock=lambda: NOW)
        daemon = Counting(services=services, celery=make_celery("memory://"))

        for _ in range(ticks):
            assert not daemon.tick(passed)

    assert daemon.looks == 20
