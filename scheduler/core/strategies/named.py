"""What a strategy's name says: which it is, at which setting, and what it needs of a query."""

from __future__ import annotations

import math
import re

from scheduler.core.policies import PEERS, WINDOW_PEERS, WITH_HISTORY
from scheduler.core.policies.base import Mode, Peer
from scheduler.types import SETTING_SIGN

NUMBER = re.compile(r"[0-9]{1,4}(\.[0-9]{1,6})?")
SHOWN_MAX = 32
"""Characters of a wrong setting that an error message repeats."""
SETTLED = (0.5, 1.0)
"""The certainties at which a vote may be settled."""

_PEERS: dict[str, Peer] = {**PEERS, **WINDOW_PEERS}
NAMES = ("auto", "direct", "best_of_n", "self_consistency", "uniform", *_PEERS)
"""What a query may ask for."""


class Unnamed(ValueError):
    """No strategy has this name, or it has no such setting; the text says what would be one."""


def kind_of(strategy: str) -> str:
    """The name without the setting."""
    return strategy.partition(SETTING_SIGN)[0]


def check_strategy(strategy: str) -> None:
    """Raises Unnamed where there is no such strategy or setting."""
    kind, sign, text = strategy.partition(SETTING_SIGN)
    if kind not in NAMES:
        raise Unnamed(f"is not one of {', '.join(NAMES)}")
    if sign:
        _check_setting(kind, text)


def needs_verdicts(kind: str) -> bool:
    """Whether it can only choose with a verifier that has a reference."""
    return kind == "best_of_n" or (kind in _PEERS and Mode.VOTE not in _PEERS[kind].modes)


def is_vote(kind: str, *, can_judge: bool) -> bool:
    """Whether it draws several samples of a query and takes the answer most of them give."""
    if kind in _PEERS:
        return not (can_judge and Mode.VERIFIER in _PEERS[kind].modes)
    return kind == "self_consistency" or (kind == "uniform" and not can_judge)


def canonical(strategy: str) -> str:
    """The one spelling of a strategy and its setting: `asc@0.90` is `asc@0.9`."""
    kind, sign, text = strategy.partition(SETTING_SIGN)
    return f"{kind}{sign}{float(text):g}" if sign else strategy


def draws_all(kind: str, *, can_judge: bool) -> bool:
    """Whether it draws all of its samples at once, whatever they show."""
    return kind == "uniform" or (kind in WITH_HISTORY and not can_judge)


def _check_setting(kind: str, text: str) -> None:
    if kind == "self_consistency":
        low, high = SETTLED
    elif kind in _PEERS:
        low, high = _PEERS[kind].allowed
    else:
        raise Unnamed(f"has a setting, but {kind} takes none; leave out {SETTING_SIGN}{text}")
    setting = float(text) if NUMBER.fullmatch(text) else math.nan
    whole = kind == "esc"
    if not low <= setting <= high or (whole and not setting.is_integer()):
        number = "a whole number" if whole else "a number"
        said = text[:SHOWN_MAX] or "nothing"
        raise Unnamed(f"has the setting {said}; that of {kind} is {number} from {low:g} to {high:g}")
