"""The choices there are for each query of a window: what they are expected to gain and to cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import numpy as np

from scheduler.core.arm_curves import arm_curves
from scheduler.core.beliefs import Floats
from scheduler.core.cascade import TINY, Candidate, beliefs, cascade
from scheduler.core.evidence import Ints
from scheduler.drafts import Draft, is_drawn_at_once, is_voted


@dataclass(frozen=True, kw_only=True, slots=True)
class Pick:
    """One choice for a query: a model with its most samples, and whether another is asked where they all fail."""

    draft: Draft
    samples_max: int
    escalates: bool = False


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Menu:
    """The n choices of a query that several models may answer: `picks`, `gains` (n,) and `costs` (n,).

    The first is the least it can be given, the last what it is given where money is not scarce.
    """

    picks: tuple[Pick, ...]
    gains: Floats
    costs: Floats


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Curves:
    """What the A choices of each query are expected to gain and cost, a row per query.

    They are 1..A samples, or the `Menu` of a query that several models may answer; the last is repeated where there are
    fewer. `menus` has one of those per query, or None.
    """

    gains: Floats
    costs: Floats
    menus: tuple[Menu | None, ...]

    def take(self, rows: Ints) -> Curves:
        """Those of some queries."""
        return Curves(gains=self.gains[rows], costs=self.costs[rows], menus=tuple(self.menus[int(row)] for row in rows))


def curves_of(drafts: Sequence[Draft]) -> Curves:
    """What the choices of each draft gain and cost."""
    gains, costs = _counted(drafts)
    menus = tuple(menu_of(draft) if draft.others else None for draft in drafts)
    width = max(gains.shape[1], *(len(menu.picks) for menu in menus if menu is not None), 0)
    gains, costs = widened(gains, width), widened(costs, width)
    for row, menu in enumerate(menus):
        if menu is not None:
            gains[row], costs[row] = widened(menu.gains, width), widened(menu.costs, width)
    return Curves(gains=gains, costs=costs, menus=menus)


def plain_arms(drafts: Sequence[Draft], curves: Curves) -> Ints:
    """The column of what each draft is given where money is not scarce."""
    counts = [
        max(1, draft.plan.samples_max) if menu is None else len(menu.picks)
        for draft, menu in zip(drafts, curves.menus, strict=True)
    ]
    return np.array(counts) - 1


def pick_at(draft: Draft, menu: Menu | None, column: int) -> Pick:
    """The choice that a column of the draft's curves stands for."""
    return Pick(draft=draft, samples_max=column + 1) if menu is None else menu.picks[column]


def menu_of(draft: Draft) -> Menu:
    """What a query that several models may answer could be given.

    With a verifier, the samples of all its models in the order of a cascade, up to any of them; without one, any number
    of samples of any one model, the most promising at last.
    """
    return _cascaded(draft) if draft.plan.arm.kind == "best_of_n" else _apart(draft)


def _cascaded(draft: Draft) -> Menu:
    variants = draft.variants
    drawn = [variant.drawn for variant in variants]
    candidates = [
        Candidate(
            alpha=variant.prediction.alpha,
            beta=variant.prediction.beta,
            cost=prompt_nanousd(variant) + sample_nanousd(variant),
            samples_max=variant.plan.samples_max,
            failures=variant.drawn,
        )
        for variant in variants
    ]
    path = cascade(candidates)
    if not path.order:  # all is paid for, and only to be looked at
        pick = Pick(draft=variants[0], samples_max=max(1, drawn[0]))
        return Menu(picks=(pick,), gains=np.zeros(1), costs=np.zeros(1))
    first = path.order[0]
    alone = sum(1 for _ in takewhile(lambda each: each == first, path.order))
    alpha, beta = beliefs(candidates, drawn)[first]
    told = _believing(variants[first], alpha, beta)
    picks = tuple(
        Pick(draft=told, samples_max=told.drawn + min(count, alone), escalates=count > alone)
        for count in range(1, len(path.order) + 1)
    )
    return Menu(picks=picks, gains=path.gains, costs=path.costs)


def _apart(draft: Draft) -> Menu:
    curves = [(_counted([variant]), variant) for variant in draft.variants]
    curves.sort(key=lambda each: (float(each[0][0][0, -1]), -float(each[0][1][0, -1])))
    picks = [Pick(draft=v, samples_max=n + 1) for (gains, _), v in curves for n in range(gains.shape[1])]
    gains, costs = (np.concatenate([each[kind][0] for each, _ in curves]) for kind in (0, 1))
    singles = [i for i, pick in enumerate(picks) if pick.samples_max == 1]
    first = max(singles, key=lambda i: gains[i] / max(costs[i], TINY))
    order = [first, *range(len(picks))]
    return Menu(picks=tuple(picks[i] for i in order), gains=gains[order], costs=costs[order])


def _believing(draft: Draft, alpha: float, beta: float) -> Draft:
    """The draft as others' failures make it look."""
    return replace(draft, prediction=replace(draft.prediction, alpha=alpha, beta=beta))


def widened(values: Floats, width: int) -> Floats:
    """The same rows, the last value of each repeated."""
    short = [(0, 0)] * (values.ndim - 1) + [(0, width - values.shape[-1])]
    return np.pad(values, short, "edge")


def _counted(drafts: Sequence[Draft]) -> tuple[Floats, Floats]:
    """What 1..A samples of each draft gain and cost; past its own limit, no more than at it."""
    most = max(max(1, draft.plan.samples_max) for draft in drafts)
    alpha = np.array([draft.prediction.alpha for draft in drafts])
    beta = np.array([draft.prediction.beta for draft in drafts])
    prompt = np.array([prompt_nanousd(draft) for draft in drafts])
    sample = np.array([sample_nanousd(draft) for draft in drafts])
    voted = np.array([is_voted(draft.query, draft.plan) for draft in drafts])
    gains, costs = arm_curves(alpha, beta, prompt, sample, voted=voted, samples_max=most)
    at_once = np.array([is_drawn_at_once(draft.query, draft.plan) for draft in drafts])
    costs[at_once] = prompt[at_once, None] + np.arange(most + 1) * sample[at_once, None]
    limits = np.array([max(1, draft.plan.samples_max) for draft in drafts])
    within = np.minimum(np.arange(1, most + 1), limits[:, None])
    return np.take_along_axis(gains, within, 1), np.take_along_axis(costs, within, 1)


def prompt_nanousd(draft: Draft) -> float:
    """What a wave costs beside its samples."""
    return float(draft.query.prompt_tokens * draft.price.prompt_nanousd)


def sample_nanousd(draft: Draft) -> float:
    """What each sample of a wave is expected to cost."""
    return min(float(draft.plan.tokens_max), draft.prediction.tokens_expected) * draft.price.completion_nanousd
