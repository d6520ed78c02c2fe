from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mac_core.errors import InvalidInput, StoreError
from mac_core.evaluation.learned import learn_documents
from mac_core.evaluation.learned_cache import GrowingBank, LearnedCache
from mac_core.memory.bank import BankView, MemoryBank
from mac_core.types import Document, Fingerprint


def grow(
    reader: Any, directory: Path | None, *parts: list[Document], fingerprint: Any = None
) -> BankView:
    """The bank after learning part by part."""
    with LearnedCache(directory, fingerprint=fingerprint or reader.fingerprint) as cache:
        growing = GrowingBank(reader, cache=cache, batch_size=4)
        for part in parts:
            growing.add(part)
        return growing.view


def contents(view: BankView) -> list[Any]:
    return [
        (e.document_id, e.title, e.text, e.start, dict(e.metadata), e.stored.token_ids.tolist())
        for e in view.entries
    ]


def test_a_growing_bank_learns_each_document_once(reader: Any, documents: list[Document]) -> None:
    view = grow(reader, None, documents[:2], documents[2:])
    assert sum(reader.num_amortized) == 6
    assert (view.version, view.num_documents) == (2, 6)


def test_a_bank_grown_in_parts_is_the_bank_learned_at_once(
    reader: Any, documents: list[Document], tmp_path: Path
) -> None:
    whole = learn_documents(reader, MemoryBank(reader.config.selection), documents, batch_size=4)
    grow(reader, tmp_path, documents)
    read_back = grow(reader, tmp_path, documents[:1], documents[1:])
    assert contents(read_back) == contents(whole)
    torch.testing.assert_close(read_back.selection_keys, whole.selection_keys, rtol=0, atol=0)


def test_what_is_kept_is_not_learned_again(
    reader: Any, documents: list[Document], tmp_path: Path
) -> None:
    grow(reader, tmp_path, documents[:4])
    reader.num_amortized.clear()
    view = grow(reader, tmp_path, documents)
    assert reader.num_amortized == [2]
    assert [entry.document_id for entry in view.entries] == [f"d{i}" for i in range(6)]


def test_only_what_was_learned_now_is_counted_and_timed(
    reader: Any, documents: list[Document], tmp_path: Path
) -> None:
    grow(reader, tmp_path, documents[:4])
    with LearnedCache(tmp_path, fingerprint=reader.fingerprint) as cache:
        growing = GrowingBank(reader, cache=cache, batch_size=4)
        growing.add(documents[:3])
        assert (growing.num_learned_chunks, growing.learn_seconds) == (0, None)
        growing.add(documents[3:])
    assert growing.num_learned_chunks == 2
    assert growing.learn_seconds is not None
    assert growing.learn_seconds > 0.0


def test_a_kept_document_comes_back_under_its_present_name(
    reader: Any, documents: list[Document], tmp_path: Path
) -> None:
    grow(reader, tmp_path, documents[:1])
    renamed = replace(documents[0], id="other", title="Another")
    (entry,) = grow(reader, tmp_path, [renamed]).entries
    assert (entry.document_id, entry.title) == ("other", "Another")
    assert entry.metadata == {"document": "other"}
    assert sum(reader.num_amortized) == 1


def test_texts_that_differ_in_spaces_are_different_documents(
    reader: Any, documents: list[Document], tmp_path: Path
) -> None:
    grow(reader, tmp_path, documents[:1])
    spaced = replace(documents[0], text=documents[0].text.replace(" ", "  "))
    (entry,) = grow(reader, tmp_path, [spaced]).entries
    assert entry.text == spaced.text


def test_another_bundles_documents_are_not_read_and_stay(
    reader: Any, documents: list[Document], tmp_path: Path
) -> None:
    other = Fingerprint(amortization_hash="c" * 64, base_lm_hash="b" * 64)
    grow(reader, tmp_path, documents)
    grow(reader, tmp_path, documents, fingerprint=other)
    assert sum(reader.num_amortized) == 12
    grow(reader, tmp_path, documents)
    assert sum(reader.num_amortized) == 12


def test_what_another_device_learned_is_not_read(
    reader: Any, documents: list[Document], tmp_path: Path
) -> None:
    grow(reader, tmp_path, documents)
    with LearnedCache(tmp_path, fingerprint=reader.fingerprint, device="cuda") as cache:
        assert cache.read(documents[0]) is None


def test_what_other_code_learned_is_not_read_and_stays(
    reader: Any, documents: list[Document], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow(reader, tmp_path, documents)
    with monkeypatch.context() as edited:
        edited.setattr("mac_core.evaluation.learned_cache.code_sha256", lambda: "e" * 64)
        grow(reader, tmp_path, documents)
    assert sum(reader.num_amortized) == 12
    grow(reader, tmp_path, documents)
    assert sum(reader.num_amortized) == 12


@pytest.mark.parametrize("other", [2, 8, 32])
def test_other_bits_lie_beside(
    reader: Any, documents: list[Document], tmp_path: Path, other: Any
) -> None:
    grow(reader, tmp_path, documents)
    with LearnedCache(tmp_path, fingerprint=reader.fingerprint, bits=other) as cache:
        assert cache.read(documents[0]) is None


class StoppedError(Exception):
    """The run is killed."""


def test_a_killed_run_keeps_the_parts_that_it_had_learned(
    reader: Any, documents: list[Document], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mac_core.evaluation.learned_cache.DOCUMENTS_AT_ONCE", 2)

    def dies(chunks: Any) -> Any:
        if len(reader.num_amortized) == 2:
            raise StoppedError
        return type(reader).amortize(reader, chunks)

    reader.amortize = dies
    with pytest.raises(StoppedError):
        grow(reader, tmp_path, documents)
    del reader.amortize
    reader.num_amortized.clear()
    grow(reader, tmp_path, documents)
    assert reader.num_amortized == [2]


def test_a_cache_in_use_is_refused(reader: Any, tmp_path: Path) -> None:
    with (
        LearnedCache(tmp_path, fingerprint=reader.fingerprint),
        pytest.raises(StoreError, match="in use"),
    ):
        LearnedCache(tmp_path, fingerprint=reader.fingerprint)


def test_documents_that_share_an_id_are_refused_though_parts_apart(
    reader: Any, documents: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mac_core.evaluation.learned_cache.DOCUMENTS_AT_ONCE", 2)
    with pytest.raises(InvalidInput, match="7 documents"):
        grow(reader, None, [*documents, replace(documents[0], text="Ada moved .")])
