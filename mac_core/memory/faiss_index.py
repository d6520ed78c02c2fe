"""A `DenseIndex` over FAISS: built beside the engine, then kept up with the bank.

The engine thread alone adds to a finished index and searches it. Nothing is ever taken out: what
the bank no longer holds is skipped, and when that is too much the index is built anew from the
bank. A finished build is a pure function of the keys that the bank holds, in their order.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mac_core.config import IndexConfig
from mac_core.memory import faiss_kinds
from mac_core.memory.dense_index import DenseIndex, Proposal
from mac_core.memory.faiss_kinds import Keys
from mac_core.memory.growing import GrowingTensor
from mac_core.memory.index_files import IndexFiles
from mac_core.memory.views import BankView

logger = logging.getLogger(__name__)

STOP_S = 5.0  # how long closing waits for a build to notice
PART = 65_536  # keys copied at once
RESAVED_SHARE = 1 / 16  # of the index: so many added keys are worth writing it again at the end

Start = Callable[[Callable[[], None]], Thread | None]


@dataclass(kw_only=True, eq=False)
class Built:
    """An index and what the bank calls its keys, by their number in it."""

    index: Any
    rows: GrowingTensor  # (keys,), int64, ascending
    num_training_keys: int
    num_saved: int

    @property
    def last_row(self) -> int:
        return int(self.rows.rows[-1]) if len(self.rows.rows) else 0


def start_thread(work: Callable[[], None]) -> Thread:
    """A build beside the engine; the interpreter need not wait for it."""
    thread = Thread(target=work, name="mac-index", daemon=True)
    thread.start()
    return thread


class FaissIndex:
    """One namespace's index. Engine thread only."""

    def __init__(self, config: IndexConfig, *, namespace: str, start: Start = start_thread) -> None:
        """
        Args:
            start: runs a build; by default in a thread of its own.

        Raises:
            ConfigurationError: FAISS is not installed.
        """
        faiss_kinds.load_faiss()
        self._config = config
        self._start = start
        self._files = (
            IndexFiles(Path(config.directory), namespace=namespace, config=config)
            if config.directory
            else None
        )
        self._built: Built | None = None
        self._made: Built | None = None  # by a build, not yet in use
        self._building: Thread | None = None
        self._stopping = Event()
        self._has_failed = False
        self._view: BankView | None = None

    @property
    def kind(self) -> str:
        return self._config.kind

    @property
    def is_exhaustive(self) -> bool:
        return self._config.kind == "flat"

    @property
    def num_keys(self) -> int:
        """In the index that answers, removed ones too; 0: none does."""
        return 0 if self._built is None else len(self._built.rows.rows)

    def follow(self, view: BankView) -> None:
        self._view = view
        self._adopt()
        if self._built is not None:
            self._catch_up(self._built, view)
        if self._building is None and self._wants_build(view):
            self._begin(view)
            self._adopt()

    def propose(self, queries: Tensor, *, fetch: int) -> Proposal | None:
        self._adopt()
        built = self._built
        if built is None:
            return None
        count = min(fetch, len(built.rows.rows))
        asked = queries.detach().cpu().contiguous().numpy()
        _, numbers = built.index.search(asked, count)  # (batch, count), -1: no more
        found = torch.from_numpy(numbers)
        return Proposal(
            rows=[built.rows.rows[row[row >= 0]] for row in found], last_row=built.last_row
        )

    def wait(self) -> None:
        """Until the build that runs is over."""
        if self._building is not None:
            self._building.join()
        self._adopt()

    def close(self) -> None:
        self._stopping.set()
        if self._building is not None:
            self._building.join(STOP_S)
            self._building = None
        built, view = self._built, self._view
        if built is None or view is None or self._files is None:
            return
        self._catch_up(built, view)
        size = len(built.rows.rows)
        is_worth_it = size - built.num_saved > built.num_saved * RESAVED_SHARE
        # Else the keys in it are not those by which the next start would know it.
        is_prefix = torch.equal(built.rows.rows, view.rows[view.alive][:size])
        wanted = faiss_kinds.num_training_keys(self._config, size)
        if is_worth_it and is_prefix and wanted == built.num_training_keys:
            self._files.save(built.index, lambda: keys_of(view))

    def _wants_build(self, view: BankView) -> bool:
        if self._has_failed or view.num_chunks < self._config.min_chunks:
            return False
        built = self._built
        if built is None:
            return True
        size = len(built.rows.rows)
        late = int(view.alive[_first_late(built, view) :].sum())
        removed = size + late - view.num_chunks
        wanted = faiss_kinds.num_training_keys(self._config, view.num_chunks)
        return removed > self._config.max_removed_share * size or wanted > built.num_training_keys

    def _begin(self, view: BankView) -> None:
        """Build from a view, which never changes, whatever is written meanwhile."""
        may_load = self._built is None

        def work() -> None:
            try:
                self._made = self._make(view, may_load=may_load)
            except Exception:
                # Questions go on by looking at every key; another try would fail as this one.
                logger.exception("an index could not be built; the server goes on without it")
                self._has_failed = True

        self._building = self._start(work)

    def _make(self, view: BankView, *, may_load: bool) -> Built | None:
        size, d_key = view.num_chunks, view.selection_keys.shape[1]

        def keys() -> Iterator[Keys]:
            return keys_of(view)

        index = None
        if may_load and self._files is not None:
            index = self._files.load(keys, size=size, d_key=d_key)
        is_loaded = index is not None
        if index is None:
            index = faiss_kinds.build(
                self._config, keys, size=size, d_key=d_key, is_stopping=self._stopping.is_set
            )
        if index is None:
            return None
        if self._files is not None and not is_loaded:
            self._files.save(index, keys)
        count = index.ntotal
        return Built(
            index=index,
            rows=GrowingTensor(view.rows[view.alive][:count].clone()),
            num_training_keys=faiss_kinds.num_training_keys(self._config, count),
            num_saved=count,
        )

    def _adopt(self) -> None:
        """Put a finished build to use."""
        if self._building is not None and self._building.is_alive():
            return
        self._building = None
        if self._made is not None:
            self._built, self._made = self._made, None

    def _catch_up(self, built: Built, view: BankView) -> None:
        """Add the next of the rows that the bank has and the index has not; not all at once."""
        first = _first_late(built, view)
        places = first + view.alive[first:].nonzero()[:, 0]
        places = places[: faiss_kinds.adds_at_once(self._config)]
        if len(places):
            keys = view.selection_keys[places.to(view.selection_keys.device)]
            faiss_kinds.add(built.index, _as_array(keys), self._config)
            built.rows.append(view.rows[places])


def _first_late(built: Built, view: BankView) -> int:
    """The place of the first row that the index does not have."""
    return int(torch.searchsorted(view.rows, built.last_row, right=True))


def keys_of(view: BankView) -> Iterator[Keys]:
    """The keys of the chunks that the view holds, in order, in parts."""
    for start in range(0, len(view.selection_keys), PART):
        keys = view.selection_keys[start : start + PART]
        yield _as_array(keys[view.alive[start : start + PART].to(keys.device)])


def _as_array(keys: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(keys.detach().cpu().numpy(), dtype=np.float32)


def index_maker(config: IndexConfig) -> Callable[[str], DenseIndex | None]:
    """Makes each namespace's index.

    Raises:
        ConfigurationError: FAISS is needed and not installed.
    """
    if config.kind == "exact":
        return lambda namespace: None
    faiss_kinds.load_faiss()
    return lambda namespace: FaissIndex(config, namespace=namespace)
