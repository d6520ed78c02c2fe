"""The kinds of FAISS index: how each is made, filled and looked through. Knows no bank.

Every kind is made by adding keys in their order, in one thread: the same keys give the same index,
whether they came at once or one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mac_core.config import IndexConfig
from mac_core.errors import ConfigurationError

Keys = NDArray[np.float32]  # (keys, d_key), unit length

GROWTH = 4  # ivf: how much larger the bank gets before its cells are found anew
SEED = 1234


def load_faiss() -> Any:
    """The library, which is an optional extra.

    Raises:
        ConfigurationError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise ConfigurationError(
            "this index needs FAISS: pip install 'mac-server[faiss]', or use MAC_INDEX=exact"
        ) from error
    return faiss


def num_training_keys(config: IndexConfig, size: int) -> int:
    """How many of the first keys say where the cells of ivf are: grows in steps of `GROWTH`."""
    if config.kind != "ivf":
        return 0
    count = min(size, config.min_chunks)
    while count * GROWTH <= size:
        count *= GROWTH
    return count


def make(config: IndexConfig, *, d_key: int, training: Keys) -> Any:
    """An empty index; `training`: the first `num_training_keys` keys."""
    faiss = load_faiss()
    faiss.omp_set_num_threads(1)
    product = faiss.METRIC_INNER_PRODUCT
    if config.kind == "flat":
        return faiss.IndexFlatIP(d_key)
    half = faiss.ScalarQuantizer.QT_fp16  # as exact as the stored keys, in half the memory
    if config.kind == "hnsw":
        index = faiss.IndexHNSWSQ(d_key, half, config.links, product)
        index.hnsw.efConstruction = config.ef_construction
        return index
    num_cells = min(len(training), 2 * round(len(training) ** 0.5))
    cells = faiss.IndexFlatIP(d_key)
    index = faiss.IndexIVFScalarQuantizer(cells, d_key, num_cells, half, product, False)
    index.cp.seed = SEED
    index.cp.min_points_per_centroid = 1  # says nothing when a tiny bank has fewer
    index.train(training)
    return index


def tune(index: Any, config: IndexConfig) -> None:
    """Set how far it looks."""
    if config.kind == "ivf":
        index.nprobe = config.probes
    elif config.kind == "hnsw":
        index.hnsw.efSearch = config.ef_search


def add(index: Any, keys: Keys, config: IndexConfig) -> None:
    """Add keys in their order."""
    if config.kind != "hnsw":
        index.add(keys)
        return
    for place in range(len(keys)):  # together, HNSW would reorder them
        index.add(keys[place : place + 1])


def build(
    config: IndexConfig,
    parts: Callable[[], Iterable[Keys]],
    *,
    size: int,
    d_key: int,
    is_stopping: Callable[[], bool] = lambda: False,
) -> Any | None:
    """The index of `size` keys, which `parts` gives again and again; None: stopped."""
    training = first_of(parts(), num_training_keys(config, size), d_key=d_key)
    index = make(config, d_key=d_key, training=training)
    for part in parts():
        for piece in _pieces(part, config):
            if is_stopping():
                return None
            add(index, piece, config)
    tune(index, config)
    return index


def first_of(parts: Iterable[Keys], count: int, *, d_key: int) -> Keys:
    """The first `count` keys, together."""
    taken: list[Keys] = []
    missing = count
    for part in parts if count else ():
        taken.append(part[:missing])
        missing -= len(taken[-1])
        if missing == 0:
            break
    return np.concatenate(taken) if taken else np.empty((0, d_key), dtype=np.float32)


def _pieces(part: Keys, config: IndexConfig) -> Iterator[Keys]:
    size = adds_at_once(config)
    return (part[start : start + size] for start in range(0, len(part), size))


def adds_at_once(config: IndexConfig) -> int:
    """How many keys are added between two looks at the clock: well under a second's work."""
    return 256 if config.kind == "hnsw" else 16_384
