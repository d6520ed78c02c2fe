"""What every store means, on each of them: SQLite in a directory, and a real Redis.

Sequences of writes and readings against a dict: `test_store_sequences.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from mac_core.errors import ForeignRecord, InvalidInput, StoreError
from mac_core.memory import redis_store, sqlite_store
from mac_core.memory.records import DocumentRecord
from mac_core.memory.store import Store
from mac_core.types import Fingerprint, MetadataValue
from tests.unit.memory.stores import OpenStore

MakeRecord = Callable[..., DocumentRecord]
ODD_IDS = ["a/b//c", "\u00e9\u4e2d\U0001f600", "..", "x" * 500, "quote'\";--", "%2F?#", "nul\x00!"]
ODD_NAMESPACES = ["{}", "a}b{c", "mac:{x}", "\u4e2d/\u00e9", "with space", "%7B"]


def ids_of(store: Store, namespace: str = "default") -> list[str]:
    return [record.id for record in store.scan(namespace)]


def test_it_is_a_store(store: Store) -> None:
    checked: Store = store
    checked.check()


def test_every_write_of_a_namespace_gets_its_next_version(
    store: Store, make_record: MakeRecord
) -> None:
    assert store.version("default") == 0
    assert store.put("default", [make_record("a"), make_record("b")]) == 1
    assert store.put("default", [make_record("c")]) == 2
    assert store.put("other", [make_record("a", namespace="other")]) == 1
    assert store.version("default") == 2
    assert [record.version for record in store.scan("default")] == [1, 1, 2]


def test_putting_nothing_writes_nothing(store: Store) -> None:
    assert store.put("default", []) == 0
    assert store.namespaces() == []


def test_an_update_keeps_created_at_and_moves_to_the_end(
    store: Store, make_record: MakeRecord
) -> None:
    store.put("default", [make_record("a", created_at=1.0), make_record("b")])
    store.put("default", [make_record("a", "new text", created_at=9.0, updated_at=9.0)])
    updated = store.get("default", "a")
    assert updated is not None
    assert (updated.text, updated.created_at, updated.updated_at) == ("new text", 1.0, 9.0)
    assert ids_of(store) == ["b", "a"]


def test_the_later_of_two_records_with_one_id_stays(store: Store, make_record: MakeRecord) -> None:
    store.put("default", [make_record("a", "one"), make_record("b"), make_record("a", "two")])
    assert [(record.id, record.text) for record in store.scan("default")] == [
        ("b", "the text of b"), ("a", "two"),
    ]  # fmt: skip


def test_delete_says_what_was_there(store: Store, make_record: MakeRecord) -> None:
    store.put("default", [make_record("a"), make_record("b")])
    assert store.delete("default", ["b", "x", "b"]) == (("b",), 2)
    assert store.delete("default", ["b"]) == ((), 2)
    assert store.delete("nowhere", ["a"]) == ((), 0)
    assert ids_of(store) == ["a"]


def test_namespaces_do_not_share_ids(store: Store, make_record: MakeRecord) -> None:
    store.put("one", [make_record("a", "text one", namespace="one")])
    store.put("two", [make_record("a", "text two", namespace="two")])
    store.delete("one", ["a"])
    assert store.get("one", "a") is None
    kept = store.get("two", "a")
    assert kept is not None
    assert kept.text == "text two"
    assert store.hashes("one", ["a"]) == {}


def test_a_record_of_another_namespace_is_a_mistake(store: Store, make_record: MakeRecord) -> None:
    with pytest.raises(ValueError, match="'default'"):
        store.put("default", [make_record("a", namespace="other")])


@pytest.mark.parametrize("document_id", ODD_IDS)
def test_odd_ids_are_ids(store: Store, make_record: MakeRecord, document_id: str) -> None:
    store.put("default", [make_record(document_id), make_record("plain")])
    found = store.info("default", document_id)
    assert found is not None
    assert (found.id, found.text) == (document_id, f"the text of {document_id}")
    assert store.delete("default", [document_id]) == ((document_id,), 2)
    assert ids_of(store) == ["plain"]


@pytest.mark.parametrize("namespace", ODD_NAMESPACES)
def test_odd_namespaces_are_namespaces(
    store: Store, make_record: MakeRecord, namespace: str
) -> None:
    store.put(namespace, [make_record("a", namespace=namespace)])
    store.put("default", [make_record("a")])
    assert {info.namespace for info in store.namespaces()} == {namespace, "default"}
    store.delete(namespace, ["a"])
    assert (ids_of(store, namespace), ids_of(store)) == ([], ["a"])


@pytest.mark.parametrize("field", ["id", "title", "text"])
def test_what_is_not_unicode_is_refused_and_nothing_is_written(
    store: Store, make_record: MakeRecord, field: str
) -> None:
    bad = replace(make_record("bad"), **{field: "\ud800"})
    with pytest.raises(InvalidInput, match="not valid Unicode"):
        store.put("default", [make_record("good"), bad])
    assert (ids_of(store), store.version("default")) == ([], 0)


def test_hashes_of_many_ids(store: Store, make_record: MakeRecord) -> None:
    record = make_record("a", parts=["one ", "two"], text="one two", created_at=5.0)
    store.put("default", [record])
    stamps = store.hashes("default", ["a", *map(str, range(1200))])
    assert stamps == {"a": (record.content_hash, 2, 6, 5.0, 1)}


def test_reopened_it_holds_the_same_in_the_same_order(
    open_store: OpenStore, make_record: MakeRecord
) -> None:
    with closing(open_store()) as store:
        store.put("default", [make_record(n, title=n, metadata={"n": n}) for n in "abcd"])
        store.put("default", [make_record("b", "changed")])
        store.delete("default", ["c"])
        before = [record.info(with_text=True) for record in store.scan("default")]
    with closing(open_store()) as reopened:
        assert [record.info(with_text=True) for record in reopened.scan("default")] == before
        assert [info.id for info in before] == ["a", "d", "b"]
        assert reopened.version("default") == 3


def test_a_scan_survives_writes_in_between(store: Store, make_record: MakeRecord) -> None:
    store.put("default", [make_record(f"{number:02}") for number in range(40)])
    seen = []
    for record in store.scan("default"):
        store.delete("default", [record.id])
        seen.append(record.id)
    assert seen == [f"{number:02}" for number in range(40)]


def test_pages_follow_the_order_of_writing(store: Store, make_record: MakeRecord) -> None:
    store.put("default", [make_record(name) for name in "edcba"])
    first = store.list("default", limit=2)
    second = store.list("default", limit=2, cursor=first.next_cursor)
    third = store.list("default", limit=2, cursor=second.next_cursor)
    pages = [[info.id for info in page.documents] for page in (first, second, third)]
    assert pages == [["e", "d"], ["c", "b"], ["a"]]
    assert third.next_cursor is None
    assert first.documents[0].text is None


def test_a_full_last_page_has_no_cursor(store: Store, make_record: MakeRecord) -> None:
    store.put("default", [make_record("a"), make_record("b")])
    assert store.list("default", limit=2).next_cursor is None


@pytest.mark.parametrize(
    "cursor",
    ["", "x", "\u00e9", "cA==", "cC0x", "cDE=\n", "a" * 10_000, "cDk5OTk5OTk5OTk5OTk5OTk5OTk5"],
)
def test_a_cursor_that_no_page_gave_is_refused(store: Store, cursor: str) -> None:
    with pytest.raises(InvalidInput, match="cursor"):
        store.list("default", limit=2, cursor=cursor)


def test_a_limit_below_one_is_refused(store: Store) -> None:
    with pytest.raises(InvalidInput, match="limit=0"):
        store.list("default", limit=0)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"kind": "news"}, ["a", "c"]), ({"n": 1}, ["a"]), ({"n": True}, ["b"]),
        ({"quote\"'.$": 2**70}, ["c"]), ({"none": None}, ["b"]), ({"absent": None}, []),
        ({"kind": "news", "n": 1}, ["a"]),
    ],
)  # fmt: skip
def test_the_list_is_filtered_by_metadata(
    store: Store, make_record: MakeRecord,
    wanted: dict[str, MetadataValue], expected: list[str],
) -> None:  # fmt: skip
    metadata: dict[str, dict[str, Any]] = {
        "a": {"kind": "news", "n": 1}, "b": {"n": True, "none": None},
        "c": {"kind": "news", "quote\"'.$": 2**70},
    }  # fmt: skip
    store.put("default", [make_record(name, metadata=values) for name, values in metadata.items()])
    page = store.list("default", limit=10, filter=wanted)
    assert [info.id for info in page.documents] == expected


def test_a_filter_looks_at_so_many_documents_for_a_page(
    store: Store, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A filter that nothing matches was one reading of the whole bank, and nobody was answered.
    for module in (sqlite_store, redis_store):
        monkeypatch.setattr(module, "FILTERED_AT_ONCE", 3)
    monkeypatch.setattr(redis_store, "LIST_ROWS", 3)
    store.put("default", [make_record(name, metadata={"n": name}) for name in "abcdefg"])
    pages, cursor = list[list[str]](), None
    while True:
        page = store.list("default", limit=1, cursor=cursor, filter={"n": "e"})
        pages.append([info.id for info in page.documents])
        cursor = page.next_cursor
        if cursor is None:
            break
    assert pages == [[], ["e"], []]
    assert [info.id for info in store.list("default", limit=5).documents] == list("abcde")


def test_namespaces_are_counted(store: Store, make_record: MakeRecord) -> None:
    store.put("b", [make_record("a", "one two", parts=["one ", "two"], namespace="b")])
    store.put("a", [make_record("a", namespace="a")])
    store.delete("a", ["a"])
    emptied, filled = store.namespaces()
    assert (emptied.namespace, emptied.num_documents, emptied.num_bytes) == ("a", 0, 0)
    assert emptied.bank_version == 2
    assert (filled.namespace, filled.num_documents, filled.num_chunks) == ("b", 1, 2)
    assert filled.num_bytes > 500


def test_expired_documents_are_named(store: Store, make_record: MakeRecord) -> None:
    store.put("default", [make_record("a", expires_at=5.0), make_record("b", expires_at=6.0)])
    store.put("other", [make_record("c", namespace="other", expires_at=4.0)])
    store.put("default", [make_record("never")])
    assert sorted(store.expired(5.0)) == [("default", "a"), ("other", "c")]


def test_only_what_has_expired_by_then_is_removed_as_expired(
    store: Store, make_record: MakeRecord
) -> None:
    store.put("default", [make_record("a", expires_at=5.0), make_record("b", expires_at=9.0)])
    store.put("default", [make_record("never")])
    store.put("other", [make_record("b", namespace="other", expires_at=4.0)])
    assert store.delete("default", ["a", "b", "never"], expired_by=5.0) == (("a",), 3)
    assert store.delete("default", ["a", "b", "never"], expired_by=5.0) == ((), 3)
    assert ids_of(store) == ["b", "never"]


def test_an_update_without_an_end_never_expires(store: Store, make_record: MakeRecord) -> None:
    store.put("default", [make_record("a", expires_at=5.0)])
    store.put("default", [make_record("a", "new")])
    assert store.expired(1e12) == []


def test_foreign_records_are_refused_but_their_text_can_be_read(
    open_store: OpenStore, make_record: MakeRecord, fingerprint: Fingerprint
) -> None:
    with closing(open_store()) as store:
        store.put("default", [make_record("a", "some text")])
    with closing(open_store(replace(fingerprint, base_lm_hash="f" * 64))) as store:
        with pytest.raises(ForeignRecord, match="mac bank reindex"):
            next(iter(store.scan("default")))
        found = store.info("default", "a")
    assert found is not None
    assert found.text == "some text"


def test_without_a_fingerprint_it_reads_anything_and_writes_nothing(
    open_store: OpenStore, make_record: MakeRecord
) -> None:
    with closing(open_store()) as store:
        store.put("default", [make_record("a")])
    with closing(open_store(None)) as store:
        assert ids_of(store) == ["a"]
        with pytest.raises(StoreError, match="read-only"):
            store.put("default", [make_record("b")])


def test_a_closed_store_says_so_and_can_be_opened_again(open_store: OpenStore) -> None:
    store = open_store()
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.check()
    open_store().close()


def test_pinned_is_kept_and_listed(store: Store, make_record: MakeRecord) -> None:
    store.put("default", [make_record("a", pinned=True), make_record("b")])
    assert [record.pinned for record in store.scan("default")] == [True, False]
    assert [info.pinned for info in store.list("default", limit=9).documents] == [True, False]
    assert [store.info("default", name).pinned for name in "ab"] == [True, False]
    store.put("default", [make_record("a")])
    assert [info.pinned for info in store.list("default", limit=9).documents] == [False, False]
