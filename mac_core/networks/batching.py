"""From the documents chosen for each row to padded tensors; what rows share is laid out once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from mac_core.networks.aggregation import AggregationKeys, AggregationNetwork
from mac_core.networks.layout import Layout, pad_rows
from mac_core.networks.pointer import PointerMemory
from mac_core.networks.values import BankSlice, Origin
from mac_core.types import Modulation

Chosen = tuple[Modulation, ...]
_NO_IDS = torch.empty(0, dtype=torch.int64)
Cached = tuple[AggregationKeys | None, ...]


def bank_slice(
    rows: Sequence[Chosen],
    cached: Sequence[Cached],
    log_prior: Sequence[Sequence[float]],
    *,
    network: AggregationNetwork,
    device: torch.device,
    layout: Layout | None = None,
) -> tuple[BankSlice, AggregationKeys]:
    """The bank as each row of a batch sees it; at least one row has a document.

    Rows that read the very same documents share one copy: the leading axis is then 1.

    Args:
        layout: of documents whose slots are their framed tokens; None: slots have no origin.
    """
    shared = all(_same(row, rows[0]) for row in rows)
    distinct = rows[:1] if shared else rows
    documents = max(len(row) for row in distinct)
    prior = torch.full((len(rows), documents), -torch.inf)
    for row, values in enumerate(log_prior):
        prior[row, : len(values)] = torch.tensor(values)
    flat = [modulation for row in distinct for modulation in row]
    slots = pad_sequence([modulation.slots for modulation in flat], batch_first=True).to(device)
    lengths = torch.tensor([len(modulation.slots) for modulation in flat])
    mask = (torch.arange(slots.shape[1]) < lengths[:, None]).to(device)
    keys = _keys([key for row in cached[: len(distinct)] for key in row], slots, mask, network)
    place = _places(distinct, documents).to(device)  # (rows, documents), into flat; -1: none
    index: Tensor = place.clamp_min(0)
    origin = None
    if layout is not None:
        framed = [layout.document(m.token_ids.tolist()) for m in flat]
        ids, _ = pad_rows(framed, pad_id=layout.pad_id, device=device)
        content = torch.tensor([len(m.token_ids) for m in flat], device=device)
        origin = slot_origin(ids, content, index, head=len(layout.document_head))
    return (
        BankSlice(
            slots=slots[index],
            mask=mask[index] & (place >= 0)[..., None],
            log_prior=prior.to(device),
            origin=origin,
        ),
        keys.select(index),
    )


def slot_origin(ids: Tensor, num_content: Tensor, index: Tensor, *, head: int) -> Tensor:
    """Where the slots of each row's documents come from: `(rows, documents, tokens, 4)`.

    Args:
        ids: `(distinct, tokens)`, framed documents, right-padded.
        num_content: `(distinct,)`, tokens that are not framing.
        index: `(rows, documents)`, which of them each row has.
        head: framing tokens before the content.
    """
    places = torch.arange(ids.shape[1], device=ids.device) - head
    is_content = (places >= 0) & (places < num_content[:, None])
    columns = {
        Origin.DOCUMENT: torch.zeros_like(ids),
        Origin.POSITION: torch.where(is_content, places, -1),
        Origin.BEFORE: F.pad(ids, (1, 0))[:, :-1],
        Origin.TOKEN: ids,
    }
    origin = torch.stack([columns[column] for column in Origin], dim=-1)[index]
    origin[..., Origin.DOCUMENT] = torch.arange(index.shape[1], device=ids.device)[:, None]
    return origin


def pointer_memory(
    rows: Sequence[Chosen],
    log_prior: Sequence[Sequence[float]],
    *,
    max_documents: int,
    device: torch.device,
) -> PointerMemory | None:
    """Every token that a row may copy, under its document's log-prior; None when there is none.

    Only the best `max_documents` of a row are copied from.
    """
    widths = {m.pointer_keys.shape[1] for row in rows for m in row if m.pointer_keys is not None}
    if not widths:
        return None
    no_keys, no_ids, no_prior = torch.empty(0, widths.pop()), _NO_IDS, torch.empty(0)
    keys, ids, priors = list[Tensor](), list[Tensor](), list[Tensor]()
    places = list[Tensor]()
    for row, values in zip(rows, log_prior, strict=True):
        pointed = [
            (m.pointer_keys, m.token_ids, prior, place)
            for place, (m, prior) in enumerate(
                zip(row[:max_documents], values[:max_documents], strict=True)
            )
            if m.pointer_keys is not None
        ]
        keys.append(torch.cat([no_keys, *(key for key, _, _, _ in pointed)]))
        ids.append(torch.cat([no_ids, *(tokens for _, tokens, _, _ in pointed)]))
        full = [(tokens.shape, prior, place) for _, tokens, prior, place in pointed]
        priors.append(torch.cat([no_prior, *(torch.full(n, prior) for n, prior, _ in full)]))
        places.append(torch.cat([no_ids, *(torch.full(n, place) for n, _, place in full)]))
    return PointerMemory(
        keys=pad_sequence(keys, batch_first=True).to(device),
        token_ids=pad_sequence(ids, batch_first=True).to(device),
        log_prior=pad_sequence(priors, batch_first=True, padding_value=-torch.inf).to(device),
        document=pad_sequence(places, batch_first=True).to(device),
    )


def _same(left: Chosen, right: Chosen) -> bool:
    return len(left) == len(right) and all(a is b for a, b in zip(left, right, strict=True))


def _places(rows: Sequence[Chosen], documents: int) -> Tensor:
    """Where each row's documents lie in the rows' concatenation: `(rows, documents)`, -1: none."""
    place = torch.full((len(rows), documents), -1, dtype=torch.int64)
    done = 0
    for index, row in enumerate(rows):
        place[index, : len(row)] = torch.arange(done, done + len(row))
        done += len(row)
    return place


def _keys(
    cached: Sequence[AggregationKeys | None],
    slots: Tensor,
    mask: Tensor,
    network: AggregationNetwork,
) -> AggregationKeys:
    """Cached keys, padded to the slots' length; made here only for documents that lack them."""
    found = [key for key in cached if key is not None]
    if len(found) < len(slots):
        return network.keys(slots, mask)
    return AggregationKeys.stack(found).to(slots.device)
