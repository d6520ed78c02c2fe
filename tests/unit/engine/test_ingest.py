"""Adding and removing: results, isolation, durability before visibility, expiry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from mac_core.engine import ingest, intake
from mac_core.engine.validation import MAX_ID_CHARS
from mac_core.errors import (
    DeadlineExceeded,
    DocumentExists,
    DocumentTooLong,
    EngineFailed,
    InvalidInput,
    MacError,
    StoreError,
)
from mac_core.memory.records import DocumentRecord
from mac_core.networks.aggregation import AggregationKeys
from mac_core.types import Document, Modulation
from tests.unit.engine.conftest import Bench, MakeBench, outcome
from tests.unit.engine.fakes import WAIT_S, FakeModel, Gate

PARIS = "The capital of France is Paris. It is large."
OSLO = "The capital of Norway is Oslo. It is cold."
ROME = "The capital of Italy is Rome. It is old."
LONG = " ".join(f"w{number}" for number in range(100))  # several chunks, no sentence ends in it


def test_added_document_is_inserted_and_visible_at_its_version(bench: Bench) -> None:
    (result,) = bench.learn(Document(id="fr", text=PARIS))
    assert (result.id, result.status, result.bank_version) == ("fr", "inserted", 1)
    assert (result.num_chunks, result.num_tokens) == (1, 11)
    assert bench.engine.bank_version("default") == 1
    assert bench.ask("What is the capital of France?").text == "Paris"


def test_the_same_document_twice_changes_nothing(bench: Bench) -> None:
    (first,) = bench.learn(PARIS)
    (second,) = bench.learn(PARIS)
    assert (second.id, second.status, second.bank_version) == (first.id, "unchanged", 1)
    assert (second.num_chunks, second.num_tokens) == (first.num_chunks, first.num_tokens)
    assert len(bench.model.amortized) == 1


def test_other_text_under_the_same_id_updates(bench: Bench) -> None:
    bench.learn(Document(id="x", text=PARIS))
    (result,) = bench.learn(Document(id="x", text=OSLO))
    assert (result.status, result.bank_version) == ("updated", 2)
    assert bench.engine.status().num_documents == 1
    assert bench.ask("What is the capital of Norway?").text == "Oslo"


@pytest.mark.parametrize("name", ["x", None])
@pytest.mark.parametrize("text", [PARIS + "\n", PARIS.replace(" ", "  ")])
def test_other_whitespace_is_another_text(bench: Bench, text: str, name: str | None) -> None:
    """Of the same document, also where its id is a hash, which does not tell them apart."""
    (first,) = bench.learn(Document(id=name, text=PARIS))
    (result,) = bench.learn(Document(id=name, text=text))
    assert (result.id, result.status) == (first.id, "updated")
    assert outcome(bench.engine.get_document(first.id, namespace="default")).text == text


def test_duplicates_inside_one_batch_are_unchanged(bench: Bench) -> None:
    results = bench.learn(PARIS, OSLO, PARIS)
    assert [result.status for result in results] == ["inserted", "inserted", "unchanged"]
    assert bench.engine.status().num_documents == 2


def test_last_text_of_an_id_wins_inside_one_batch(bench: Bench) -> None:
    results = bench.learn(*(Document(id="x", text=text) for text in (PARIS, OSLO, PARIS, PARIS)))
    assert [result.status for result in results] == ["inserted", "updated", "updated", "unchanged"]
    info = outcome(bench.engine.get_document("x", namespace="default"))
    assert info.text == PARIS


def test_skip_keeps_what_is_stored(bench: Bench) -> None:
    bench.learn(Document(id="x", text=PARIS))
    (result,) = bench.learn(Document(id="x", text=OSLO, on_conflict="skip"))
    assert (result.status, result.bank_version) == ("unchanged", 1)
    assert outcome(bench.engine.get_document("x", namespace="default")).text == PARIS


def test_fail_on_conflict_says_which_document_exists(bench: Bench) -> None:
    bench.learn(Document(id="x", text=PARIS))
    results = bench.learn(Document(id="x", text=OSLO, on_conflict="fail"), ROME)
    assert [result.status for result in results] == ["failed", "inserted"]
    assert isinstance(results[0].error, DocumentExists)
    assert "'x'" in str(results[0].error)


@pytest.mark.parametrize(
    ("document", "error", "said"),
    [
        (Document(text=""), InvalidInput, "empty"),
        (Document(text=" \n\t "), InvalidInput, "4 characters"),
        (Document(text="abc\x00def"), InvalidInput, "U+0000 at 3"),
        (Document(text="abc\x1bdef"), InvalidInput, "U+001B"),
        (Document(text="abc\ud800def"), InvalidInput, "U+D800"),
        (Document(text="x" * 101), DocumentTooLong, "101 characters, the limit is 100"),
        (Document(text="ok", id=""), InvalidInput, "1 to 256"),
        (Document(text="ok", id="i" * (MAX_ID_CHARS + 1)), InvalidInput, "257"),
        (Document(text="ok", id="a\nb"), InvalidInput, "U+000A at 1"),
        (Document(text="ok", title="a\x00"), InvalidInput, "title"),
        (Document(text="ok", ttl_s=0.0), InvalidInput, "ttl_s=0.0"),
        (Document(text="ok", ttl_s=float("nan")), InvalidInput, "ttl_s=nan"),
        (Document(text="ok", published_at=float("inf")), InvalidInput, "published_at=inf"),
        (Document(text="ok", metadata={"k": float("nan")}), InvalidInput, "'k' is nan"),
        (Document(text="ok", metadata={"k\x00": 1}), InvalidInput, "metadata key"),
    ],
)
def test_bad_document_fails_alone(
    make_bench: MakeBench, document: Document, error: type[MacError], said: str
) -> None:
    bench = make_bench(max_document_chars=100)
    before, failed, after = bench.learn(PARIS, document, OSLO)
    assert (before.status, failed.status, after.status) == ("inserted", "failed", "inserted")
    assert type(failed.error) is error
    assert said in str(failed.error)


@pytest.mark.parametrize("name", ["a/b c", "日本", "..", "i" * MAX_ID_CHARS, "😀"])
def test_ids_with_slashes_and_unicode_are_kept(bench: Bench, name: str) -> None:
    (result,) = bench.learn(Document(id=name, text=PARIS))
    assert (result.id, result.status) == (name, "inserted")
    assert outcome(bench.engine.get_document(name, namespace="default")).id == name


def test_namespace_with_control_characters_fails_the_documents(bench: Bench) -> None:
    (result,) = bench.learn(PARIS, namespace="a\nb")
    assert isinstance(result.error, InvalidInput)


def test_long_document_is_chunked_and_spans_count_from_its_beginning(bench: Bench) -> None:
    text = "Nothing to see here today. " * 30 + "The capital of France is Paris."
    (result,) = bench.learn(Document(id="long", text=text))
    assert result.num_chunks > 4
    (source, *_) = bench.ask("What is the capital of France?", mode="memory").sources
    assert source.span is not None
    assert text[source.span.start : source.span.end] == "Paris"
    assert source.chunk == result.num_chunks - 1


def test_every_chunk_fits_the_network_with_its_frame(bench: Bench) -> None:
    # Defect 9: what is longer than the network reads is cut or refused there.
    bench.learn(LONG)
    lengths = [
        len(bench.model.layout.document(bench.model.tokenizer.encode(chunk)))
        for chunks in bench.model.amortized
        for chunk in chunks
    ]
    assert max(lengths) == bench.model.config.amortization.max_tokens


def test_chunks_overlap_as_the_bundle_says(bench: Bench) -> None:
    # Defect 9: what stands across a cut is whole in one of its chunks.
    bench.learn(LONG)
    first, second = bench.model.amortized[0][:2]
    overlap = bench.model.config.amortization.chunk_overlap_tokens
    assert overlap > 0
    assert first.split()[-overlap:] == second.split()[:overlap]


def test_no_forward_pass_is_larger_than_configured(bench: Bench) -> None:
    bench.learn(*(f"Fact {i} is number {i}." for i in range(11)), "Much to say here. " * 60)
    assert max(len(chunks) for chunks in bench.model.amortized) == 4


def test_document_that_cannot_be_amortized_fails_alone(bench: Bench) -> None:
    def refuse_poison(chunks: list[str]) -> None:
        if any("poison" in chunk for chunk in chunks):
            raise RuntimeError("secret internals")

    bench.model.on_amortize = refuse_poison
    results = bench.learn(PARIS, "This is poison.", OSLO)
    assert [result.status for result in results] == ["inserted", "failed", "inserted"]
    assert isinstance(results[1].error, EngineFailed)
    assert "secret" not in str(results[1].error)
    assert bench.engine.status().num_documents == 2


def test_long_document_is_packed_pass_by_pass(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All of it at the end was one step of seconds, in which no question was answered.
    bench, done = make_bench(max_batch_chunks=2), list[str]()
    bench.model.on_amortize = lambda chunks: done.append(f"read {len(chunks)}")
    keys = bench.model.aggregation_keys

    def pack(modulation: Modulation) -> AggregationKeys:
        done.append("packed")
        return keys(modulation)

    monkeypatch.setattr(bench.model, "aggregation_keys", pack)
    (result,) = bench.learn(LONG)
    assert result.num_chunks == 4
    assert done == ["read 2", "packed", "packed"] * 2


def test_out_of_memory_halves_the_batch_and_loses_no_document(make_bench: MakeBench) -> None:
    def allow_two(chunks: list[str]) -> None:
        if len(chunks) > 2:
            raise MemoryError

    bench = make_bench(max_batch_chunks=8, model=FakeModel(on_amortize=allow_two))
    results = bench.learn(*(f"Fact {i} is number {i}." for i in range(8)))
    assert {result.status for result in results} == {"inserted"}
    assert [len(chunks) for chunks in bench.model.amortized] == [8, 4, 2, 2, 4, 2, 2]


def test_store_failure_fails_the_documents_and_leaves_the_bank_alone(bench: Bench) -> None:
    bench.learn(PARIS)
    bench.store.error = StoreError("the disk is full")
    results = bench.learn(OSLO, PARIS)
    assert [result.status for result in results] == ["failed", "unchanged"]
    assert isinstance(results[0].error, StoreError)
    assert (bench.engine.bank_version("default"), bench.engine.status().num_documents) == (1, 1)
    assert bench.observer.store_errors == ["put"]
    assert "Oslo" not in bench.ask("What is the capital of Norway?").text


def test_store_recovers_without_restart(bench: Bench) -> None:
    bench.store.error = StoreError("the disk is full")
    bench.learn(PARIS)
    bench.store.error = None
    (result,) = bench.learn(PARIS)
    assert (result.status, result.bank_version) == ("inserted", 1)


def test_unknown_store_error_does_not_show_internals(bench: Bench) -> None:
    bench.store.error = KeyError("secret internals")
    (result,) = bench.learn(PARIS)
    assert isinstance(result.error, StoreError)
    assert "secret" not in str(result.error)


def test_metadata_that_is_no_json_fails_alone(bench: Bench) -> None:
    results = bench.learn(PARIS, Document(text=OSLO, metadata={"k": object()}))  # type: ignore[dict-item]
    assert [result.status for result in results] == ["inserted", "failed"]


def test_record_that_only_the_store_refuses_fails_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Defect 12: three documents in one transaction, of which the store takes two. That it cannot
    # hold half a character is known before, and is not looked at here.
    monkeypatch.setattr(intake, "check_document", lambda document, *, max_chars: None)
    put, sizes = bench.store.put, list[int]()

    def counted(namespace: str, records: Sequence[DocumentRecord]) -> int:
        sizes.append(len(records))
        return put(namespace, records)

    monkeypatch.setattr(bench.store, "put", counted)
    results = bench.learn(PARIS, Document(text=OSLO, title="\ud800"), ROME)
    assert [result.status for result in results] == ["inserted", "failed", "inserted"]
    assert isinstance(results[1].error, InvalidInput)
    assert "surrogates not allowed" in str(results[1].error)
    assert sizes == [3, 1, 1, 1]
    assert bench.engine.status().num_documents == bench.engine.bank_version("default") == 2
    assert bench.ask("What is the capital of Italy?").text == "Rome"


def test_remove_says_what_was_there(bench: Bench) -> None:
    bench.learn(Document(id="fr", text=PARIS), Document(id="no", text=OSLO))
    removed = outcome(bench.engine.remove(["no", "unknown"]))
    assert (removed.removed_ids, removed.bank_version) == (("no",), 2)
    assert bench.engine.status().num_documents == 1
    assert outcome(bench.engine.remove(["no"])).bank_version == 2


def test_remove_matching_is_one_write_over_any_number_of_pages(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "LISTED_AT_ONCE", 2)
    for number in range(5):
        document = Document(id=f"d{number}", text=f"Fact {number}.", metadata={"old": number < 4})
        bench.learn(document)
    result = outcome(bench.engine.remove_matching({"old": True}))
    assert (result.removed_ids, result.bank_version) == (("d0", "d1", "d2", "d3"), 6)
    assert bench.engine.status().num_documents == 1
    assert outcome(bench.engine.remove_matching({"old": True})).bank_version == 6


def test_remove_matching_with_a_failing_store_changes_nothing(bench: Bench) -> None:
    bench.learn(Document(id="a", text="One.", metadata={"k": 1}))
    bench.store.error = StoreError("the disk is full")
    with pytest.raises(StoreError):
        outcome(bench.engine.remove_matching({"k": 1}))
    assert bench.engine.status().num_documents == 1


def test_remove_comes_after_what_was_added_before(bench: Bench) -> None:
    gate = Gate()
    bench.model.on_amortize = gate
    added = bench.engine.add([Document(id="fr", text=PARIS)])
    gate.wait_until_reached()
    removed = bench.engine.remove(["fr"])
    gate.open()
    assert outcome(added)[0].status == "inserted"
    assert outcome(removed).removed_ids == ("fr",)


def test_remove_with_a_failing_store_changes_nothing(bench: Bench) -> None:
    bench.learn(Document(id="fr", text=PARIS))
    bench.store.error = StoreError("the disk is full")
    with pytest.raises(StoreError, match="disk is full"):
        outcome(bench.engine.remove(["fr"]))
    assert bench.engine.status().num_documents == 1


def test_expired_document_is_not_found_nor_read_nor_counted(bench: Bench) -> None:
    bench.learn(Document(id="fr", text=PARIS, ttl_s=60.0), OSLO)
    bench.clock.turn(61.0)
    assert bench.ask("What is the capital of France?", mode="memory").text != "Paris"
    page = outcome(
        bench.engine.list_documents(namespace="default", limit=10, cursor=None, filter={})
    )
    assert [info.text for info in page.documents if info.id == "fr"] == []
    assert ("expired", 1) in bench.observer.documents
    assert bench.engine.status().num_documents == 1


def test_document_that_comes_again_lives_anew(bench: Bench) -> None:
    document = Document(id="fr", text=PARIS, ttl_s=60.0)
    bench.learn(document)
    bench.clock.turn(40.0)
    assert bench.learn(document)[0].status == "updated"
    bench.clock.turn(40.0)
    assert bench.ask("What is the capital of France?", mode="memory").text == "Paris"
    bench.clock.turn(21.0)
    assert bench.ask("What is the capital of France?", mode="memory").text != "Paris"


def test_document_that_is_to_be_skipped_does_not_live_anew(bench: Bench) -> None:
    document = Document(id="fr", text=PARIS, ttl_s=60.0)
    bench.learn(document)
    bench.clock.turn(40.0)
    assert bench.learn(replace(document, on_conflict="skip"))[0].status == "unchanged"


def test_expired_document_can_be_inserted_again(bench: Bench) -> None:
    document = Document(id="fr", text=PARIS, ttl_s=60.0)
    bench.learn(document)
    bench.clock.turn(61.0)
    assert bench.learn(document)[0].status == "inserted"


def test_documents_that_expire_one_after_the_other_all_leave(bench: Bench) -> None:
    # Defect 12: after the first expiry the next one has to be known again.
    bench.learn(Document(id="fr", text=PARIS, ttl_s=60.0), Document(id="no", text=OSLO, ttl_s=120))
    bench.clock.turn(61.0)
    bench.learn(ROME)  # removes what is due first
    assert bench.engine.status().num_documents == 2
    bench.clock.turn(61.0)
    bench.learn(ROME)
    assert bench.engine.status().num_documents == 1
    assert bench.observer.documents.count(("expired", 1)) == 2


def test_time_to_live_counts_from_when_the_text_was_learned(bench: Bench) -> None:
    # Defect 12: not from its publication, nor from when its id was first seen.
    learned_at = bench.clock.epoch_s
    bench.learn(Document(id="x", text=PARIS, ttl_s=60.0, published_at=learned_at - 3600.0))
    first = outcome(bench.engine.get_document("x", namespace="default"))
    assert first.expires_at == learned_at + 60.0
    bench.clock.turn(30.0)
    bench.learn(Document(id="x", text=OSLO, ttl_s=60.0, published_at=learned_at + 3600.0))
    updated = outcome(bench.engine.get_document("x", namespace="default"))
    assert updated.expires_at == learned_at + 90.0


def test_deadline_before_the_first_document_fails_the_whole_call(bench: Bench) -> None:
    gate = Gate()
    bench.model.on_amortize = gate
    first = bench.engine.add([Document(text=PARIS)])
    gate.wait_until_reached()
    late = bench.engine.add([Document(text=OSLO)], timeout_ms=500)
    bench.clock.turn(1.0)
    gate.open()
    assert outcome(first)[0].status == "inserted"
    with pytest.raises(DeadlineExceeded, match="500 ms"):
        outcome(late)
    assert bench.engine.status().num_documents == 1


def test_cancelled_documents_are_not_learned(bench: Bench) -> None:
    gate = Gate()
    bench.model.on_amortize = gate
    first = bench.engine.add([Document(text=PARIS)])
    gate.wait_until_reached()
    second = bench.engine.add([Document(text=OSLO), Document(text=ROME)])
    assert second.cancel()
    assert bench.engine.status().queued_documents == 0
    gate.open()
    outcome(first)
    assert bench.engine.status().num_documents == 1


def test_no_documents_is_an_empty_result(bench: Bench) -> None:
    assert bench.learn() == []


def test_namespaces_do_not_share_documents(bench: Bench) -> None:
    bench.learn(Document(id="x", text=PARIS), namespace="a")
    (result,) = bench.learn(Document(id="x", text=OSLO), namespace="b")
    assert result.status == "inserted"
    assert bench.ask("What is the capital of France?", namespace="a").text == "Paris"
    assert bench.ask("What is the capital of France?", namespace="b").text != "Paris"
    listed = outcome(bench.engine.list_namespaces())
    assert [(info.namespace, info.num_documents) for info in listed] == [("a", 1), ("b", 1)]


def test_the_same_text_in_two_namespaces_is_two_documents(bench: Bench) -> None:
    # Defect 12: recognised by its content, but only within its namespace.
    (first,) = bench.learn(PARIS, namespace="a")
    (second,) = bench.learn(PARIS, namespace="b")
    assert (first.status, second.status) == ("inserted", "inserted")
    assert first.id != second.id
    outcome(bench.engine.remove([first.id, second.id], namespace="a"))
    assert bench.ask("What is the capital of France?", namespace="b").text == "Paris"


def test_reads_come_before_a_waiting_ingest(bench: Bench) -> None:
    bench.learn(Document(id="fr", text=PARIS))
    gate = Gate()
    bench.model.on_amortize = gate
    running = bench.engine.add([Document(text=OSLO)])
    gate.wait_until_reached()
    bench.model.on_amortize = second = Gate()
    waiting = bench.engine.add([Document(text=ROME)])
    read = bench.engine.get_document("fr", namespace="default")
    gate.open()
    outcome(running)
    second.wait_until_reached()
    assert read.result(WAIT_S).text == PARIS
    second.open()
    outcome(waiting)


def test_a_document_that_expired_while_the_server_was_down_is_gone(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.learn(Document(id="fr", text=PARIS, ttl_s=60.0), OSLO)
    bench.engine.close()
    again = make_bench()
    again.clock.turn(61.0)
    assert {source.id for source in again.ask("What is the capital?", top_k=0).sources}.isdisjoint(
        {"fr"}
    )
    again.learn("Something else.")  # removes what is due first
    assert ("expired", 1) in again.observer.documents
    (info,) = outcome(again.engine.list_namespaces())
    assert (info.num_documents, info.bank_version) == (2, 3)
