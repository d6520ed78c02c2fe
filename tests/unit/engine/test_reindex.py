"""Another bundle over the same store: refused, then re-indexed from the stored texts."""

from __future__ import annotations

from pathlib import Path

import pytest

from mac_core.engine.offline import amortize_chunks, cut_document
from mac_core.engine.reindex import reindex
from mac_core.errors import ForeignRecord
from mac_core.memory.opening import open_store, url_of_directory
from mac_core.memory.records import DocumentRecord
from mac_core.types import Fingerprint
from tests.unit.engine.fakes import FINGERPRINT, FakeModel

OTHER = Fingerprint(amortization_hash="c" * 64, base_lm_hash="d" * 64)


KEPT = (
    *("id", "title", "text", "metadata", "published_at", "expires_at"),
    *("created_at", "updated_at", "content_hash", "pinned"),
)


def _record(model: FakeModel, name: str, text: str) -> DocumentRecord:
    chunks = cut_document(model, text)
    return DocumentRecord(
        id=name,
        namespace="default",
        title="t",
        text=text,
        metadata={"k": 1},
        published_at=3.0,
        expires_at=7.0,
        created_at=5.0,
        updated_at=6.0,
        content_hash="h" + name,
        num_tokens=sum(chunk.num_tokens for chunk in chunks),
        chunks=tuple(amortize_chunks(model, chunks, batch_size=2)),
        pinned=True,
    )


def kept_of(record: DocumentRecord) -> dict[str, object]:
    """What networks do not make."""
    return {name: getattr(record, name) for name in KEPT}


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "redis":
        found: str = request.getfixturevalue("redis_url")
        return found
    return url_of_directory(tmp_path)


def test_reindex_makes_foreign_records_readable_and_keeps_what_is_stored(url: str) -> None:
    model = FakeModel()
    long = " ".join(f"word{i}." for i in range(60))
    written = [_record(model, "a", "The bridge opened."), _record(model, "b", long)]
    store = open_store(url, fingerprint=OTHER)
    store.put("default", written)
    store.close()

    store = open_store(url, fingerprint=FINGERPRINT)
    with pytest.raises(ForeignRecord, match="mac bank reindex"):
        list(store.scan("default"))
    store.close()

    assert reindex(url, model) == 2

    store = open_store(url, fingerprint=FINGERPRINT)
    found = list(store.scan("default"))
    store.close()
    assert [kept_of(record) for record in found] == [kept_of(record) for record in written]
    assert [len(r.chunks) for r in found] == [len(r.chunks) for r in written]
    assert len(found[1].chunks) > 1
