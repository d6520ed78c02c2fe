"""What a bank costs as it grows: memory, start, selection by each kind of index, writes.

python -m tests.benchmarks.bank_store DIRECTORY 1000000
python -m tests.benchmarks.bank_size DIRECTORY --out result.json --figure bank-size.svg

One thread, no model: documents come from the store as at a server's start. A card, then one JSON
line. Times are wall-clock p50 and p95, which others on the machine stretch, with the thread's own
CPU p50 beside them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mac_core.config import IndexConfig, SelectionConfig
from mac_core.memory.bank import MemoryBank
from mac_core.memory.dense_index import nearest
from mac_core.memory.faiss_index import FaissIndex
from mac_core.memory.index import exact_cosines
from mac_core.memory.lexical import Words
from mac_core.memory.records import DocumentRecord
from mac_core.memory.sqlite_store import SqliteStore
from mac_core.memory.views import BankView
from tests.benchmarks.bank_store import BATCH, FINGERPRINT
from tests.benchmarks.synthetic import D_KEY, NAMESPACE, Corpus, queries_near

SIZES = (1_000, 10_000, 100_000, 1_000_000)
KINDS: tuple[Literal["flat", "ivf", "hnsw"], ...] = ("flat", "ivf", "hnsw")
SELECTION = SelectionConfig(d_key=D_KEY, top_k=8)
MIN_CHUNKS = IndexConfig().min_chunks
QUESTION_WORDS = 6
WRITES = 16
RECALL_AT = 8


@dataclass(kw_only=True)
class Times:
    """Milliseconds."""

    p50: float
    p95: float
    cpu_p50: float
    n: int


@dataclass(kw_only=True)
class KindCost:
    """One kind of index at one size."""

    candidates_ms: Times  # cosine's candidates
    recall_at_8: float
    build_s: float = 0.0
    build_cpu_s: float = 0.0
    load_s: float = 0.0
    file_bytes: int = 0
    rss_bytes: int = 0  # that the process grew by
    add_ms: float = 0.0  # of one more chunk


@dataclass(kw_only=True)
class SizeCost:
    """One size of the bank."""

    documents: int
    start_s: float  # reading the store into the bank, no index
    start_cpu_s: float
    rss_bytes: int
    insert_ms: Times
    update_ms: Times
    delete_ms: Times
    bm25_ms: Times
    select_ms: Times  # both sides fused, exact
    kinds: dict[str, KindCost] = field(default_factory=dict)


def timed(work: Callable[[int], object], count: int) -> Times:
    """Call `work` for 0, 1, ... and take the time of each."""
    walls, cpus = [], []
    for number in range(count):
        wall, cpu = time.perf_counter(), time.thread_time()
        work(number)
        walls.append(1000 * (time.perf_counter() - wall))
        cpus.append(1000 * (time.thread_time() - cpu))
    walls.sort()
    cpus.sort()
    return Times(
        p50=walls[count // 2], p95=walls[count * 95 // 100], cpu_p50=cpus[count // 2], n=count
    )


def rss_bytes() -> int:
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in x)
    return 1024 * int(line.split()[1])


@dataclass(kw_only=True)
class Questions:
    """Queries beside documents of the bank, and words."""

    queries: torch.Tensor  # (questions, D_KEY)
    texts: list[str]

    @classmethod
    def about(cls, corpus: Corpus, documents: int, count: int) -> Questions:
        firsts = [n * (documents // BATCH) // count * BATCH for n in range(count)]
        keys = [corpus.keys(first, BATCH)[n * 7 % BATCH] for n, first in enumerate(firsts)]
        return cls(
            queries=queries_near(np.stack(keys), seed=documents),
            texts=corpus.questions(count, seed=documents, words=QUESTION_WORDS),
        )


class Measuring:
    """Fills one bank from a store and looks at it at each size."""

    def __init__(self, store: SqliteStore, kinds: Sequence[str], *, questions: int) -> None:
        self._records = store.scan(NAMESPACE)
        self._corpus = Corpus()
        self._bank = MemoryBank(SELECTION)
        self._kinds = kinds
        self._questions = questions
        self._wall = self._cpu = 0.0
        self._size = 0

    def run(self, sizes: Sequence[int]) -> Iterator[SizeCost]:
        for size in sizes:
            self._fill(size)
            cost = self._look()
            yield cost
            for kind in self._kinds:
                cost.kinds[kind] = self._look_with(kind)
                yield cost

    def _fill(self, size: int) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        while self._size < size:
            part = list(islice(self._records, min(1024, size - self._size)))
            self._bank.apply(NAMESPACE, 1, (), part)
            self._size += len(part)
        self._wall += time.perf_counter() - wall
        self._cpu += time.process_time() - cpu

    @property
    def _view(self) -> BankView:
        return self._bank.view(NAMESPACE)

    def _look(self) -> SizeCost:
        size, rss = self._size, rss_bytes()
        asked = Questions.about(self._corpus, size, self._questions)
        view, shelf = self._view, self._bank._shelves[NAMESPACE]
        few = max(20, self._questions // 4) if size > 100_000 else self._questions

        def choose(n: int, view: BankView = view) -> object:
            return nearest(view, asked.queries[n : n + 1], view.alive, limit=32)

        def words(n: int, view: BankView = view) -> object:
            found = Words(shelf.index, view, asked.texts[n], view.alive, is_whole=True)
            return found.scores(found.best(limit=32))

        def select(n: int, view: BankView = view) -> object:
            return self._bank.select(
                view, query=asked.queries[n], text=asked.texts[n], top_k=8, filter={}, as_of=None,
                now=0.0,
            )  # fmt: skip

        exact = KindCost(candidates_ms=timed(choose, few), recall_at_8=1.0)
        bm25, whole = timed(words, few), timed(select, few)
        inserts, updates, deletes = self._write()
        return SizeCost(
            documents=size,
            start_s=self._wall,
            start_cpu_s=self._cpu,
            rss_bytes=rss,
            insert_ms=inserts,
            update_ms=updates,
            delete_ms=deletes,
            bm25_ms=bm25,
            select_ms=whole,
            kinds={"exact": exact},
        )

    def _write(self) -> tuple[Times, Times, Times]:
        """Insert some documents, update and delete them: the bank is as before."""
        first = next(Corpus(seed=7).batches(WRITES, size=WRITES)).records
        fresh = [_renamed(record, f"new-{place}") for place, record in enumerate(first)]

        def put(n: int) -> object:
            return self._bank.apply(NAMESPACE, 1, (), [fresh[n]])

        def delete(n: int) -> object:
            return self._bank.apply(NAMESPACE, 1, [fresh[n].id], [])

        return timed(put, WRITES), timed(put, WRITES), timed(delete, WRITES)

    def _look_with(self, kind: Any) -> KindCost:
        asked = Questions.about(self._corpus, self._size, self._questions)
        with tempfile.TemporaryDirectory() as directory:
            config = IndexConfig(
                kind=kind, min_chunks=min(MIN_CHUNKS, self._size), directory=directory
            )
            wall, cpu, rss = time.perf_counter(), time.process_time(), rss_bytes()
            view = self._view
            index = FaissIndex(config, namespace=NAMESPACE, start=lambda work: work())
            index.follow(view)
            built = (time.perf_counter() - wall, time.process_time() - cpu, rss_bytes() - rss)
            (file,) = Path(directory).glob("*.faiss")

            def choose(n: int, index: FaissIndex = index) -> object:
                return nearest(view, asked.queries[n : n + 1], view.alive, limit=32, index=index)

            times = timed(choose, self._questions)
            cost = KindCost(
                candidates_ms=times,
                recall_at_8=self._recall(asked, index),
                build_s=built[0],
                build_cpu_s=built[1],
                rss_bytes=built[2],
                file_bytes=file.stat().st_size,
            )
            del index, choose
            wall = time.perf_counter()
            again = FaissIndex(config, namespace=NAMESPACE, start=lambda work: work())
            again.follow(view)
            cost.load_s = time.perf_counter() - wall
            cost.add_ms = self._add(again)
        return cost

    def _add(self, index: FaissIndex) -> float:
        """Wall milliseconds for the index to take one more chunk; the bank is as before."""
        fresh = _renamed(next(Corpus(seed=9).batches(1, size=1)).records[0], "added")
        view = self._bank.apply(NAMESPACE, 1, (), [fresh])
        wall = time.perf_counter()
        index.follow(view)
        seconds = time.perf_counter() - wall
        self._bank.apply(NAMESPACE, 1, [fresh.id], [])
        return 1000 * seconds

    def _recall(self, asked: Questions, index: FaissIndex) -> float:
        """Of the 8 nearest of some questions, the share among the candidates."""
        view, count = self._view, min(50, self._questions)
        found = 0
        for query in asked.queries[:count]:
            best = [
                _nearest_ids(view, query, rows)
                for rows in (
                    *nearest(view, query[None], view.alive, limit=32),
                    *nearest(view, query[None], view.alive, limit=32, index=index),
                )
            ]
            found += len(best[0] & best[1])
        return found / (count * RECALL_AT)


def _nearest_ids(view: BankView, query: torch.Tensor, places: torch.Tensor) -> set[int]:
    cosines = exact_cosines(view.selection_keys[places], query)
    return set(places[cosines.topk(RECALL_AT).indices].tolist())


def _renamed(record: DocumentRecord, name: str) -> DocumentRecord:
    return replace(record, id=name)


def card(costs: Sequence[SizeCost]) -> str:
    lines = ["documents  kind    cand. p50/p95/cpu ms     recall@8  build s  load s  file MB"]
    for cost in costs:
        for kind, made in cost.kinds.items():
            t = made.candidates_ms
            lines.append(
                f"{cost.documents:>9,}  {kind:<6}  {t.p50:7.2f} {t.p95:7.2f} {t.cpu_p50:7.2f}  "
                f"{made.recall_at_8:8.3f}  {made.build_s:7.1f} {made.load_s:7.1f} "
                f"{made.file_bytes / 1e6:8.1f}"
            )
    lines.append("documents  start s   RSS GB  insert/update/delete p50 ms   BM25 p50/p95  select")
    lines += [
        f"{c.documents:>9,}  {c.start_s:7.1f}  {c.rss_bytes / 1e9:7.2f}  {c.insert_ms.p50:8.3f} "
        f"{c.update_ms.p50:8.3f} {c.delete_ms.p50:8.3f}  {c.bm25_ms.p50:7.2f} {c.bm25_ms.p95:7.2f}"
        f"  {c.select_ms.p50:7.2f} {c.select_ms.p95:7.2f}"
        for c in costs
    ]
    return "\n".join(lines)


def draw(costs: Sequence[dict[str, Any]], path: Path) -> None:
    """CPU time of selection by kind and of writes, over the size of the bank; logarithmic axes."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from mac_core.evaluation.plots import STYLE

    sizes = [cost["documents"] for cost in costs]
    with rc_context(STYLE):
        figure = Figure(figsize=(9.6, 4.0), layout="constrained")
        left, right = figure.subplots(1, 2)
        for kind in ("exact", *KINDS):
            have = [cost for cost in costs if kind in cost["kinds"]]
            heights = [cost["kinds"][kind]["candidates_ms"]["cpu_p50"] for cost in have]
            left.plot([cost["documents"] for cost in have], heights, marker="o", label=kind)
        left.plot(
            sizes, [cost["bm25_ms"]["cpu_p50"] for cost in costs], "k--", marker=".", label="BM25"
        )
        for name in ("insert", "update", "delete"):
            heights = [cost[f"{name}_ms"]["cpu_p50"] for cost in costs]
            right.plot(sizes, heights, marker="o", label=name)
        for axes, title in ((left, "candidates of one question"), (right, "one write to the bank")):
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_xlabel("documents in the bank")
            axes.set_ylabel("CPU time of one thread, p50, ms")
            axes.set_title(title, fontsize=10)
            axes.legend(frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path, help="or with --drawn, what --out wrote")
    parser.add_argument("--drawn", action="store_true", help="draw again, measure nothing")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    if options.drawn:
        draw(json.loads(options.store.read_text()), options.figure)
        return
    torch.set_num_threads(1)
    costs: dict[int, SizeCost] = {}
    with closing(SqliteStore(options.store, fingerprint=FINGERPRINT)) as store:
        measuring = Measuring(store, options.kinds.split(","), questions=options.questions)
        for cost in measuring.run([int(size) for size in options.sizes.split(",")]):
            costs[cost.documents] = cost
            print(card([cost]), file=sys.stderr, flush=True)
            if options.out:  # after every step: the last ones take long
                options.out.write_text(json.dumps([asdict(c) for c in costs.values()]))
    if options.figure:
        draw([asdict(cost) for cost in costs.values()], options.figure)
    print(card(list(costs.values())))
    print(json.dumps({"threads": 1, "seed": 0, "sizes": [asdict(c) for c in costs.values()]}))


if __name__ == "__main__":
    main()
