"""Tiny documents: widths of a few, seeded by their own id."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mac_core.memory.chunking import Chunk
from mac_core.memory.quantization import pack
from mac_core.memory.records import DocumentRecord, StoredChunk, content_hash
from mac_core.memory.store import Store
from mac_core.types import Document, Fingerprint, Modulation
from tests.unit.memory.stores import FINGERPRINT, OpenStore, redis_at, sqlite_in

D_KEY = 8
MakeRecord = Callable[..., DocumentRecord]


def modulation_of(seed_text: str, *, with_pointer: bool = True) -> Modulation:
    generator = torch.Generator().manual_seed(zlib.crc32(seed_text.encode("utf-8", "replace")))
    return Modulation(
        slots=torch.randn(2, 130, generator=generator),
        selection_key=F.normalize(torch.randn(D_KEY, generator=generator), dim=0),
        token_ids=torch.tensor([5, 6, 7]),
        token_offsets=torch.tensor([[0, 1], [1, 2], [2, 3]]),
        pointer_keys=torch.randn(3, 6, generator=generator) if with_pointer else None,
    )


def _make_record(document_id: str, text: str | None = None, **changes: Any) -> DocumentRecord:
    text = f"the text of {document_id}" if text is None else text
    parts = changes.pop("parts", [text])
    chunks, start = [], 0
    for index, part in enumerate(parts):
        chunk = Chunk(index=index, text=part, start=start, end=start + len(part), num_tokens=3)
        chunks.append(StoredChunk(chunk=chunk, stored=pack(modulation_of(part))))
        start += len(part)
    values: dict[str, Any] = {
        "namespace": "default", "title": None, "metadata": {}, "published_at": None,
        "expires_at": None, "created_at": 100.0, "updated_at": 100.0,
        "content_hash": content_hash(Document(text=text)), "num_tokens": 3 * len(parts),
    }  # fmt: skip
    return DocumentRecord(id=document_id, text=text, chunks=tuple(chunks), **(values | changes))


@pytest.fixture(scope="session")
def make_modulation() -> Callable[..., Modulation]:
    return modulation_of


@pytest.fixture(scope="session")
def make_record() -> MakeRecord:
    return _make_record


@pytest.fixture(scope="session")
def fingerprint() -> Fingerprint:
    return FINGERPRINT


@pytest.fixture(params=["sqlite", "redis", pytest.param("redis_cluster", marks=pytest.mark.slow)])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> OpenStore:
    if request.param != "sqlite":
        return redis_at(request.getfixturevalue(f"{request.param}_url"))
    return sqlite_in(tmp_path / "store")


@pytest.fixture
def store(open_store: OpenStore) -> Iterator[Store]:
    opened = open_store()
    yield opened
    opened.close()
