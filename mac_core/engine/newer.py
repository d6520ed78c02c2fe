"""Newer wins: of chosen chunks that say something on the same thing, the latest published speaks.

The rule. Take the chunks from the best down. A chunk competes with a better one when they are of
different documents with known and different dates of publication, their selection keys have a
cosine of `NEAR` or more, its score by cosine and BM25 is at least `SHARE` of the better one's, and
where late interaction has ranked them its whole score is at most `NATS` behind: with some bundles
the one tells two subjects in the same words apart, with some the other. Of the best and all
that compete with it the newest gets the best one's place and score; the older ones keep `SHARE` of
that at most. Then the same with the best of what is left. Documents without a date take no part.

It does not know whether two texts contradict each other: where all are dated, it at times prefers a
newer text that only resembles the right one (deploy/docs/results.md says how often). The three
limits were chosen with all of deploy/demo/conflicts.jsonl in view, and depend on the bundle: a
test asks them of the one that ships.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf

import torch

from mac_core.memory.bank import Selected

NEAR = 0.55  # cosine of selection keys
SHARE = 0.8  # of the better one's score by cosine and BM25
NATS = 3.0  # behind the better one's whole score
RIVALS = 8  # chosen beyond `top_k`, so that the newer one need not be among the best already
LOOKED_AT = 64  # of the best; a whole bank is not compared with itself


def num_candidates(top_k: int, *, most: int) -> int:
    """How many to select, so that `newer_first` can choose `top_k`; 0: all, as ever.

    Args:
        most: as many are ranked whatever `top_k` is; more would change what is found.
    """
    return 0 if top_k == 0 else max(top_k, min(top_k + RIVALS, most))


def newer_first(
    selected: Sequence[Selected], *, top_k: int, num_readings: int = 1
) -> list[Selected]:
    """The `top_k` (0: all) of `selected` by the rule above, best first, priors among themselves.

    Args:
        selected: best first.
        num_readings: so many times `top_k` are wanted. Those after the first `top_k` are read
            without the newer ones, so that none of them may be older than a rival of its own.
    """
    scores, places = _scores(selected)
    outdated = {selected[place].entry for place in places}
    is_changed = scores != [chosen.score for chosen in selected]
    if is_changed:
        changed = [replace(one, score=score) for one, score in zip(selected, scores, strict=True)]
        selected = sorted(changed, key=lambda chosen: -chosen.score)
    kept = selected[:top_k] if top_k else selected
    others = [one for one in selected[len(kept) :] if one.entry not in outdated]
    kept = [*kept, *others[: top_k * (num_readings - 1)]]
    if not is_changed and len(kept) == len(selected):
        return kept
    priors = torch.tensor([chosen.score for chosen in kept]).log_softmax(dim=0).tolist()
    return [replace(one, log_prior=prior) for one, prior in zip(kept, priors, strict=True)]


def _scores(selected: Sequence[Selected]) -> tuple[list[float], set[int]]:
    """Of each, after the newer have taken their places; and the places of their older rivals."""
    outdated = set[int]()
    scores = [chosen.score for chosen in selected]
    dated = [
        place
        for place, chosen in enumerate(selected[:LOOKED_AT])
        if chosen.entry.published_at is not None
    ]
    if len({_date(selected[place]) for place in dated}) < 2:
        return scores, outdated
    keys = torch.stack([selected[place].entry.stored.selection_key_float() for place in dated])
    near = (keys @ keys.T >= NEAR).tolist()  # (dated, dated)
    waiting = list(range(len(dated)))
    while waiting:
        best, *rest = waiting
        top = selected[dated[best]].score
        rivals = [i for i in rest if near[best][i] and _competes(selected, dated[best], dated[i])]
        group = [dated[i] for i in (best, *rivals)]
        newest = max(group, key=lambda place: _date(selected[place]))  # of equals the best
        for place in group:
            if _date(selected[place]) < _date(selected[newest]):
                scores[place] = min(scores[place], SHARE * top)
                outdated.add(place)
        scores[newest] = top
        waiting = [i for i in rest if i not in rivals]
    return scores, outdated


def _competes(selected: Sequence[Selected], best: int, other: int) -> bool:
    left, right = selected[best], selected[other]
    return (
        left.entry.document_id != right.entry.document_id
        and left.entry.published_at != right.entry.published_at
        and right.first_score >= SHARE * left.first_score > 0
        and (right.first is None or right.score >= left.score - NATS)
    )


def _date(chosen: Selected) -> float:
    """Of publication, of one that has it."""
    return -inf if chosen.entry.published_at is None else chosen.entry.published_at
