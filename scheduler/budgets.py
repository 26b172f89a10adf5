"""How much each query of a window gets: what its samples gain and cost, at the price of the budgets that pay them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from models.tables import Batch
from scheduler.choices import Curves, curves_of, pick_at, plain_arms, prompt_nanousd, sample_nanousd
from scheduler.core.allocation import NOTHING, Reason, allocate, choices_at, reasons
from scheduler.core.beliefs import Floats
from scheduler.core.pacing import paced
from scheduler.drafts import Draft, smallest_wave_nanousd
from scheduler.pacing import Asking, Move, Purse, purses
from scheduler.settings import Settings

EXPLORE, ALLOTTED, FIXED = "explore", "allotd", "fixed"
"""Policies that plans name: the plain budget by lot, the priced one, and what the request itself asked for."""
ADAPTIVE = ("best_of_n", "self_consistency")
ABANDON_BELOW = 0.5
"""A query is given nothing where its best use of money is worth less than this part of the price. Those between are at
the margin: what the budget pays depends on little, so they get one sample, or wait for their cap."""
HALVINGS = 12
"""Steps in which a price is found: to a four-thousandth of itself."""
TIE = 1e-9
STRAY = 4.0
"""How far a price may stand from what the present window alone asks for: beliefs may have changed since it was made."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Allotted:
    """A window's drafts with their budgets, and the prices to be remembered."""

    drafts: list[Draft]
    moves: list[Move]


def allot_window(
    session: Session, drafts: Sequence[Draft], settings: Settings, now: datetime, *, may_abandon: bool
) -> Allotted:
    """Give every draft its budget: the plain one where money is not scarce, else what is worth its price.

    `may_abandon` says whether beliefs are good enough to give a query nothing; it gets one sample otherwise.
    """
    if not drafts:
        return Allotted(drafts=[], moves=[])
    drafts = [with_policy(draft, settings.explore_share) for draft in drafts]
    curves = curves_of(drafts)
    plain = plain_arms(drafts, curves)
    full = curves.costs[np.arange(len(drafts)), plain]
    asking = [
        # What several models may answer is in no purse of one of them: its costs are not that model's alone.
        Asking(
            query_id=d.query.id,
            tenant_id=d.tenant_id,
            batch_id=d.batch_id,
            model=d.query.model if not d.others else "",
        )
        for d in drafts
    ]
    prices, moves = np.zeros(len(drafts)), []
    for purse in purses(session, asking, float(full.mean()), now):
        rows = np.array([i for i, draft in enumerate(drafts) if draft.query.id in purse.query_ids])
        price = price_of(purse, [drafts[i] for i in rows], curves.take(rows), full[rows])
        prices[rows] = np.maximum(prices[rows], price)
        if price > 0 or (purse.pace is not None and purse.pace.price > 0):
            moves.append(Move(scope=purse.scope, tenant_id=purse.tenant_id, starts_at=purse.starts_at, price=price))
    patient = _waited_for(session, drafts) if may_abandon and prices.any() else frozenset()
    planned = []
    for i, draft in enumerate(drafts):
        may = may_abandon and draft.query.id not in patient
        planned.append(budgeted(draft, curves.take(np.array([i])), float(prices[i]), may_abandon=may))
    return Allotted(drafts=planned, moves=moves)


def price_of(purse: Purse, drafts: Sequence[Draft], curves: Curves, full: Floats) -> float:
    """The price at which this window spends its part of a budget, moved on from that of the window before."""
    adaptive = np.array([draft.policy == ALLOTTED for draft in drafts])
    allowance = purse.allowance_nanousd - float(full[~adaptive].sum())
    if float(full[adaptive].sum()) <= allowance or not adaptive.any():
        return 0.0
    gains, costs = curves.gains[adaptive], curves.costs[adaptive]
    exact = _price_within(gains, costs, max(0.0, allowance))
    if purse.pace is None or purse.pace.price <= 0:
        return exact
    cost = _cost_at(gains, costs, purse.pace.price)
    moved = paced(purse.pace, spent_nanousd=cost, due_nanousd=max(0.0, allowance)).price
    return min(max(moved, exact / STRAY), exact * STRAY)


def _price_within(gains: Floats, costs: Floats, allowance: float) -> float:
    """The price at which the window costs no more than it may, with the single samples of queries at the margin.

    Without those it would be the allocator's; at 1 / ABANDON_BELOW of that, all that have any sample had some there.
    """
    low = allocate(gains, costs, allowance).price
    if _cost_at(gains, costs, low) <= allowance:
        return low
    high = low / ABANDON_BELOW
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if _cost_at(gains, costs, middle) <= allowance else (middle, high)
    return high


def _cost_at(gains: Floats, costs: Floats, price: float) -> float:
    """What a window costs at a price: see `budgeted`."""
    arms = choices_at(gains, costs, price * (1 + TIE))
    at_margin = (arms == NOTHING) & (choices_at(gains, costs, price * ABANDON_BELOW * (1 + TIE)) != NOTHING)
    arms = np.where(at_margin, 0, arms)
    return float(costs[np.arange(len(arms)), arms][arms != NOTHING].sum())


def budgeted(draft: Draft, curves: Curves, price: float, *, may_abandon: bool) -> Draft:
    """The draft with its samples at a price: all it may have at 0, and nothing only where that is allowed."""
    arm, because = int(plain_arms([draft], curves)[0]), None
    if draft.policy == ALLOTTED and price > 0:
        arm = _arm_at(curves, price)
        if may_abandon and not draft.is_begun and _arm_at(curves, price * ABANDON_BELOW) == NOTHING:
            because = _reason(curves, price)
        paid = 0 if draft.others else min(draft.drawn, draft.plan.samples_max)
        arm = max(arm, paid - 1, 0)  # what is paid for is looked at in any case
    elif draft.policy != ALLOTTED:
        price = 0.0
    pick = pick_at(draft, curves.menus[0], arm)
    draft = replace(pick.draft, policy=draft.policy, propensity=draft.propensity, others=())
    plan = replace(
        draft.plan,
        samples_max=pick.samples_max,
        escalates=pick.escalates,
        price=price,
        alpha=draft.prediction.alpha,
        beta=draft.prediction.beta,
        prompt_nanousd=prompt_nanousd(draft),
        sample_nanousd=sample_nanousd(draft),
    )
    return replace(
        draft,
        plan=plan,
        gain=0.0 if because else float(curves.gains[0, arm]),
        cost_nanousd=0.0 if because else float(curves.costs[0, arm]),
        abandoned_because=because,
        need_nanousd=smallest_wave_nanousd(plan, draft.query.prompt_tokens_max, draft.prediction, draft.price),
    )


def _arm_at(curves: Curves, price: float) -> int:
    """The arm of one query at a price; of two that are worth the same there, the cheaper."""
    return int(choices_at(curves.gains, curves.costs, price * (1 + TIE))[0])


def with_policy(draft: Draft, explore_share: float) -> Draft:
    """Who decides on this query's budget: its own request, the lot, or the price; and with which chance."""
    adapts = draft.plan.arm.kind in ADAPTIVE and draft.plan.samples_max > 1
    if not draft.is_auto or not (adapts or draft.others):
        return replace(draft, policy=FIXED, propensity=1.0)
    if lot(draft.query.id) < explore_share:
        return replace(draft, policy=EXPLORE, propensity=explore_share)
    return replace(draft, policy=ALLOTTED, propensity=1.0 - explore_share)


def lot(query_id: int) -> float:
    """A number in [0, 1) that is a query's own: planned again after a crash, it draws the same lot."""
    digest = hashlib.sha256(f"explore:{query_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _reason(curves: Curves, price: float) -> str:
    """Why a query is given nothing, with the numbers."""
    none = np.array([NOTHING])
    [why] = reasons(curves.gains, curves.costs, float("inf"), none)
    chance, cost = float(curves.gains[0, 0]), float(curves.costs[0, 0])
    elsewhere = price * cost
    return (
        f"{Reason(why).sentence}: a sample is right with a chance of {chance:.2%}, and its cost brings "
        f"{elsewhere:.2%} of a right answer elsewhere"
    )


def _waited_for(session: Session, drafts: Sequence[Draft]) -> frozenset[int]:
    """Queries that a client waits for just now: they get an answer, however poor."""
    waiting = set(
        session.scalars(
            select(Batch.id).where(Batch.id.in_({draft.batch_id for draft in drafts}), Batch.interactive.is_(True))
        )
    )
    return frozenset(draft.query.id for draft in drafts if draft.batch_id in waiting)
