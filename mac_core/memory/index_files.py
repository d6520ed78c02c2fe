"""Built indexes on disk, for a fast start. A cache: what does not belong to the bank is discarded.

A JSON header with the kind and its settings, a hash of the keys that are in the index, and one of
the index's bytes. Both are checked before FAISS, which trusts what it reads, sees a byte.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mac_core.config import IndexConfig
from mac_core.memory.faiss_kinds import Keys, load_faiss, tune

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
BLOCK_BYTES = 1 << 20
# What a saved index depends on; the rest only says how it is looked through or kept.
MADE_BY = ("kind", "min_chunks", "links", "ef_construction")


class IndexFiles:
    """The saved index of one namespace. One thread at a time."""

    def __init__(self, directory: Path, *, namespace: str, config: IndexConfig) -> None:
        name = hashlib.sha256(namespace.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        self._data = directory / f"{name}.faiss"
        self._header = directory / f"{name}.json"
        self._namespace = namespace
        self._config = config

    def save(self, index: Any, keys: Callable[[], Iterable[Keys]]) -> None:
        """Write the index; `keys` gives those in it, in order. A failure is logged, no more."""
        faiss = load_faiss()
        try:
            self._data.parent.mkdir(parents=True, exist_ok=True)
            written = self._data.with_suffix(".part")
            faiss.write_index(index, str(written))
            header = self._expected(index.ntotal, index.d) | {
                "keys_sha256": hash_of(keys(), index.ntotal),
                "data_sha256": _hash_of_file(written),
            }
            os.replace(written, self._data)
            part = self._header.with_suffix(".json.part")
            part.write_text(json.dumps(header, indent=1), encoding="utf-8")
            os.replace(part, self._header)
        except (OSError, RuntimeError) as error:
            logger.warning("the index could not be saved: %s", error)

    def load(self, keys: Callable[[], Iterable[Keys]], *, size: int, d_key: int) -> Any | None:
        """The saved index of the first of `size` keys; None when it is not theirs, or not whole."""
        if not self._header.exists():
            return None
        try:
            return self._load(keys, size=size, d_key=d_key)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            logger.warning("the saved index is discarded and built anew: %s", error)
            return None

    def _load(self, keys: Callable[[], Iterable[Keys]], *, size: int, d_key: int) -> Any:
        header = json.loads(self._header.read_text(encoding="utf-8"))
        count = header["num_keys"]
        if not isinstance(count, int) or not 0 < count <= size:
            raise ValueError(f"it has {count!r} keys, the bank {size}")
        differing = [k for k, v in self._expected(count, d_key).items() if header.get(k) != v]
        if differing:
            raise ValueError(f"it differs in {', '.join(differing)}")
        if hash_of(keys(), count) != header["keys_sha256"]:
            raise ValueError("its keys are not the bank's")
        if _hash_of_file(self._data) != header["data_sha256"]:
            raise ValueError("its bytes fail their checksum")
        index = load_faiss().read_index(str(self._data))
        if (index.ntotal, index.d) != (count, d_key):
            raise ValueError(f"it holds {index.ntotal} keys of width {index.d}")
        tune(index, self._config)
        return index

    def _expected(self, count: int, d_key: int) -> dict[str, object]:
        settings = asdict(self._config)
        return {
            "format_version": FORMAT_VERSION,
            "faiss": load_faiss().__version__,
            "namespace": self._namespace,
            "made_by": {name: settings[name] for name in MADE_BY},
            "num_keys": count,
            "d_key": d_key,
        }


def hash_of(parts: Iterable[Keys], count: int) -> str:
    """sha256 of the first `count` keys, hex."""
    digest, missing = hashlib.sha256(), count
    for part in parts:
        digest.update(part[:missing].tobytes())
        missing -= len(part[:missing])
        if missing == 0:
            break
    return digest.hexdigest()


def _hash_of_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
