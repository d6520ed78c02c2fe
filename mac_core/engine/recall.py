"""What an index misses and what it saves, on the keys of a store: candidates against exact ones."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from mac_core.config import IndexConfig, SelectionConfig
from mac_core.errors import CorruptRecord, InvalidInput
from mac_core.memory.bank import BankView, MemoryBank
from mac_core.memory.codebook_records import is_own_id
from mac_core.memory.dense_index import DenseIndex, nearest
from mac_core.memory.faiss_index import FaissIndex
from mac_core.memory.index import exact_cosines
from mac_core.memory.opening import open_store
from mac_core.memory.store import Store

RECALLED = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallReport:
    """One kind of index on one namespace; times in milliseconds for one question."""

    kind: str
    namespace: str
    chunks: int
    questions: int
    recall_at_8: float
    exact_p50_ms: float
    exact_p95_ms: float
    index_p50_ms: float
    index_p95_ms: float
    build_s: float
    seed: int
    num_corrupt: int = 0  # records that were left out

    def to_json_line(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    def to_text(self) -> str:
        return (
            f"{self.kind} on {self.chunks:,} chunks of {self.namespace!r}, "
            f"{self.questions} questions\n"
            f"recall@{RECALLED} {self.recall_at_8:.3f}; built in {self.build_s:.1f} s\n"
            f"exact p50 {self.exact_p50_ms:.2f} ms, p95 {self.exact_p95_ms:.2f} ms\n"
            f"{self.kind} p50 {self.index_p50_ms:.2f} ms, p95 {self.index_p95_ms:.2f} ms"
            + (f"\n{self.num_corrupt} corrupt records left out" if self.num_corrupt else "")
        )


def measure_recall(
    view: BankView, queries: Tensor, config: IndexConfig, *, num_candidates: int, seed: int = 0
) -> RecallReport:
    """Build the index of a view and compare its candidates with those of looking at every key.

    Args:
        queries: `(questions, d_key)`, unit length.
        num_candidates: as selection takes them.
    """
    # As in a server, but where it would still look at every key.
    config = replace(config, min_chunks=min(config.min_chunks, view.num_chunks))
    began = time.perf_counter()
    index = FaissIndex(config, namespace=view.namespace, start=lambda work: work())
    index.follow(view)
    build_s = time.perf_counter() - began
    exact, exact_ms = _choose(view, queries, num_candidates, None)
    found, index_ms = _choose(view, queries, num_candidates, index)
    pairs = zip(queries, exact, found, strict=True)
    shares = [_share(view, query, best, rows) for query, best, rows in pairs]
    return RecallReport(
        kind=config.kind,
        namespace=view.namespace,
        chunks=view.num_chunks,
        questions=len(queries),
        recall_at_8=sum(shares) / len(shares),
        exact_p50_ms=_percentile(exact_ms, 50),
        exact_p95_ms=_percentile(exact_ms, 95),
        index_p50_ms=_percentile(index_ms, 50),
        index_p95_ms=_percentile(index_ms, 95),
        build_s=build_s,
        seed=seed,
    )


def _choose(
    view: BankView, queries: Tensor, limit: int, index: DenseIndex | None
) -> tuple[list[Tensor], list[float]]:
    chosen, times_ms = [], []
    for query in queries:
        began = time.perf_counter()
        chosen += nearest(view, query[None], view.alive, limit=limit, index=index)
        times_ms.append(1000 * (time.perf_counter() - began))
    return chosen, times_ms


def _share(view: BankView, query: Tensor, exact: Tensor, found: Tensor) -> float:
    """Of the nearest chunks, the share that was found."""
    cosines = exact_cosines(view.selection_keys[exact], query)
    best = set(exact[cosines.topk(min(RECALLED, len(exact))).indices].tolist())
    return len(best & set(found.tolist())) / len(best)


def _percentile(values: Sequence[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


def load_view(
    store: Store,
    namespace: str,
    *,
    advance: Callable[[int], None],
    skip: Callable[[CorruptRecord], None] = lambda error: None,
) -> BankView:
    """The namespace's bank, whichever networks made it.

    Args:
        skip: told of each corrupt record, which is left out as a server leaves it out.

    Raises:
        InvalidInput: the namespace holds nothing.
        StoreError: the store cannot be read.
    """
    bank: MemoryBank | None = None
    for record in store.scan(namespace, skip=skip):
        if is_own_id(record.id):
            continue
        if bank is None:
            d_key = len(record.chunks[0].stored.selection_key)
            bank = MemoryBank(SelectionConfig(d_key=d_key))
        bank.apply(namespace, record.version, (), [record])
        advance(1)
    if bank is None:
        raise InvalidInput(f"namespace {namespace!r} holds no document")
    return bank.view(namespace)


def recall_of_store(
    store_url: str,
    config: IndexConfig,
    *,
    namespace: str,
    bundle: Path | None = None,
    questions: Sequence[str] = (),
    num_questions: int = 200,
    seed: int = 0,
    num_candidates: int = 32,
    advance: Callable[[int], None] = lambda amount: None,
) -> RecallReport:
    """Measure on a store that no server uses.

    Args:
        questions: encoded by the bundle; without any, stored chunks drawn by `seed` ask for their
            neighbours.

    Raises:
        InvalidInput: the namespace holds nothing.
        ConfigurationError: FAISS is not installed.
        StoreError: in use by a server, or it cannot be read.
    """
    store = open_store(store_url, fingerprint=None)
    corrupt = list[CorruptRecord]()
    try:
        view = load_view(store, namespace, advance=advance, skip=corrupt.append)
    finally:
        store.close()
    if questions and bundle is not None:
        from mac_core.networks.build import load_bundle  # here: only questions need a model

        encoded = load_bundle(bundle, device="cpu").encode_questions(list(questions))
        queries = encoded.selection_query.float()
    else:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randperm(view.num_chunks, generator=generator)[:num_questions]
        queries = view.selection_keys[drawn]
    report = measure_recall(view, queries, config, num_candidates=num_candidates, seed=seed)
    return replace(report, num_corrupt=len(corrupt))
