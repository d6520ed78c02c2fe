"""Ids, hashes, filters and the bytes of a record."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mac_core.config import DEFAULT_BITS, MODULATION_BITS, ModulationBits
from mac_core.errors import CorruptRecord, ForeignRecord, InvalidInput, StoreError
from mac_core.memory.codebook import train_codebook
from mac_core.memory.codebook_records import codebook_record
from mac_core.memory.quantization import pack
from mac_core.memory.record_format import decode_record, encode_record
from mac_core.memory.records import (
    DocumentRecord,
    canonical_json,
    content_hash,
    document_id,
    metadata_matches,
)
from mac_core.types import Document, Fingerprint, MetadataValue

MakeRecord = Callable[..., DocumentRecord]


def read(header: str, payload: bytes, fingerprint: Fingerprint | None) -> DocumentRecord:
    return decode_record(
        header, payload, fingerprint=fingerprint, version=7, created_at=1.5, name="document 'd'"
    )


def test_automatic_id_ignores_white_space_and_composition() -> None:
    assert document_id("n", "caf\u00e9  is\nopen") == document_id("n", " cafe\u0301 is open ")


@pytest.mark.parametrize(("namespace", "text"), [("other", "text"), ("n", "Text"), ("nt", "ext")])
def test_automatic_id_depends_on_namespace_and_text(namespace: str, text: str) -> None:
    assert document_id(namespace, text) != document_id("n", "text")


@pytest.mark.parametrize(
    "changed",
    [
        Document(text="a  b"), Document(text="a b", title="t"),
        Document(text="a b", metadata={"k": 1}), Document(text="a b", published_at=1.0),
        Document(text="a b", ttl_s=1.0),
    ],
)  # fmt: skip
def test_content_hash_sees_every_part(changed: Document) -> None:
    assert content_hash(changed) != content_hash(Document(text="a b"))


def test_content_hash_ignores_id_and_order_of_metadata() -> None:
    one = Document(text="t", id="1", metadata={"a": 1, "b": 2})
    two = Document(text="t", id="2", metadata={"b": 2, "a": 1}, on_conflict="fail")
    assert content_hash(one) == content_hash(two)


@pytest.mark.parametrize(
    "document", [Document(text="\ud800"), Document(text="t", metadata={"k": float("nan")})]
)
def test_content_that_cannot_be_stored_is_refused(document: Document) -> None:
    with pytest.raises(InvalidInput):
        content_hash(document)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, True), ({"n": 1}, True), ({"n": 1.0}, True), ({"n": True}, False), ({"b": 1}, False),
        ({"b": True}, True), ({"none": None}, True), ({"absent": None}, False),
        ({"s": "x", "n": 1}, True), ({"s": "x", "n": 2}, False),
    ],
)  # fmt: skip
def test_filter_is_equality_of_present_values(
    wanted: dict[str, MetadataValue], expected: bool
) -> None:
    assert metadata_matches({"n": 1, "b": True, "none": None, "s": "x"}, wanted) is expected


def test_a_record_comes_back_whole(make_record: MakeRecord, fingerprint: Fingerprint) -> None:
    record = make_record(
        "a/\u00e9 \U0001f600", parts=["first \u4e2d ", "second"], text="first \u4e2d second",
        title="T\x00", metadata={"k": [1, None]}, published_at=3.0,
    )  # fmt: skip
    decoded = read(*encode_record(record, fingerprint), fingerprint)
    plain = ("id", "namespace", "title", "text", "metadata", "published_at", "expires_at")
    assert [getattr(decoded, name) for name in plain] == [getattr(record, name) for name in plain]
    assert (decoded.version, decoded.created_at) == (7, 1.5)
    assert [part.chunk for part in decoded.chunks] == [part.chunk for part in record.chunks]
    for before, after in zip(record.chunks, decoded.chunks, strict=True):
        expected, actual = dict(before.stored.tensors()), dict(after.stored.tensors())
        assert expected.keys() == actual.keys()
        assert all(torch.equal(expected[name], actual[name]) for name in expected)


@pytest.mark.parametrize("place", [0, 30, -1])
def test_a_changed_byte_of_the_payload_is_corrupt(
    make_record: MakeRecord, fingerprint: Fingerprint, place: int
) -> None:
    header, payload = encode_record(make_record("d"), fingerprint)
    damaged = bytearray(payload)
    damaged[place] ^= 1
    with pytest.raises(CorruptRecord, match="document 'd'.*checksum"):
        read(header, bytes(damaged), fingerprint)


def test_a_truncated_payload_is_corrupt(make_record: MakeRecord, fingerprint: Fingerprint) -> None:
    header, payload = encode_record(make_record("d"), fingerprint)
    with pytest.raises(CorruptRecord, match=str(len(payload) - 9)):
        read(header, payload[:-9], fingerprint)


@pytest.mark.parametrize("header", ["", "{", "[]", "null", "{}", '{"format_version": "1"}'])
def test_a_header_that_is_none_is_corrupt(header: str, fingerprint: Fingerprint) -> None:
    with pytest.raises(CorruptRecord, match="document 'd'"):
        read(header, b"", fingerprint)


def test_a_changed_header_is_corrupt(make_record: MakeRecord, fingerprint: Fingerprint) -> None:
    header, payload = encode_record(make_record("d", title="before"), fingerprint)
    with pytest.raises(CorruptRecord, match="header fails its checksum"):
        read(header.replace("before", "after"), payload, fingerprint)


@pytest.mark.parametrize("network", ["amortization_hash", "base_lm_hash"])
def test_a_foreign_record_names_the_hashes_and_the_command(
    make_record: MakeRecord, fingerprint: Fingerprint, network: str
) -> None:
    encoded = encode_record(make_record("d"), fingerprint)
    other = replace(fingerprint, **{network: "c" * 64})
    with pytest.raises(ForeignRecord, match=f"{network}.*cccc.*mac bank reindex"):
        read(*encoded, other)


def test_a_foreign_record_can_be_read_on_purpose(
    make_record: MakeRecord, fingerprint: Fingerprint
) -> None:
    assert read(*encode_record(make_record("d", "text"), fingerprint), None).text == "text"


def sealed(header: str, **changes: Any) -> str:
    """The header with some values changed, and a checksum that is theirs."""
    values = json.loads(header) | changes
    del values["header_sha256"]
    digest = hashlib.sha256(canonical_json(values).encode()).hexdigest()
    return canonical_json(values | {"header_sha256": digest})


def test_a_newer_format_is_refused(make_record: MakeRecord, fingerprint: Fingerprint) -> None:
    header, payload = encode_record(make_record("d"), fingerprint)
    with pytest.raises(StoreError, match="record format 3 .*newer"):
        read(sealed(header, format_version=3), payload, fingerprint)


def test_a_flipped_bit_in_the_version_is_corrupt(
    make_record: MakeRecord, fingerprint: Fingerprint
) -> None:
    header, payload = encode_record(make_record("d"), fingerprint)
    flipped = header.replace('"format_version":2', '"format_version":3')
    assert flipped != header
    with pytest.raises(CorruptRecord, match="header fails its checksum"):
        read(flipped, payload, fingerprint)


OLD = json.loads((Path(__file__).parent / "data" / "record-format-1.json").read_text())


def test_a_record_of_format_1_still_opens(fingerprint: Fingerprint) -> None:
    record = read(OLD["header"], base64.b64decode(OLD["payload"]), fingerprint)
    assert (record.id, record.text, len(record.chunks)) == ("old", "ab cde\u00e9f ghi", 2)
    modulation = record.chunks[1].stored.unpack()
    for name, values in OLD["second_chunk"].items():
        expected = torch.tensor(values)
        torch.testing.assert_close(getattr(modulation, name), expected, rtol=1e-6, atol=1e-6)


def test_a_record_of_format_1_is_written_again_as_the_present_one(
    fingerprint: Fingerprint,
) -> None:
    old = read(OLD["header"], base64.b64decode(OLD["payload"]), fingerprint)
    new = read(*encode_record(old, fingerprint), fingerprint)
    for before, after in zip(old.chunks, new.chunks, strict=True):
        assert torch.equal(before.stored.unpack().slots, after.stored.unpack().slots)
        assert torch.equal(
            before.stored.unpack().token_offsets, after.stored.unpack().token_offsets
        )


@pytest.mark.parametrize("bits", MODULATION_BITS)
def test_every_number_of_bits_comes_back_beside_others(
    make_record: MakeRecord, make_modulation: Any, fingerprint: Fingerprint, bits: ModulationBits
) -> None:
    record = make_record("d", parts=["first ", "second"], text="first second")
    stored = pack(make_modulation("first "), bits=bits)
    mixed = replace(record, chunks=(replace(record.chunks[0], stored=stored), record.chunks[1]))
    decoded = read(*encode_record(mixed, fingerprint), fingerprint)
    assert [part.stored.encoding.bits for part in decoded.chunks] == [bits, DEFAULT_BITS]
    assert torch.equal(decoded.chunks[0].stored.unpack().slots, stored.unpack().slots)


def test_a_codebook_comes_back_as_a_record(fingerprint: Fingerprint) -> None:
    codebook = train_codebook(torch.randn(20, 8), num_parts=2)
    record = codebook_record(codebook, namespace="n", now=1.0)
    decoded = read(*encode_record(record, fingerprint), fingerprint)
    assert decoded.codebook is not None
    assert torch.equal(decoded.codebook.centroids, codebook.centroids)
    assert decoded.id == record.id
    assert decoded.id.endswith(codebook.id)


def test_encodings_that_do_not_go_with_the_chunks_are_corrupt(
    make_record: MakeRecord, fingerprint: Fingerprint
) -> None:
    header, payload = encode_record(make_record("d"), fingerprint)
    with pytest.raises(CorruptRecord, match="document 'd'"):
        read(sealed(header, slots=[]), payload, fingerprint)


def test_a_record_that_is_not_pinned_is_written_as_before(
    make_record: MakeRecord, fingerprint: Fingerprint
) -> None:
    header, payload = encode_record(make_record("d"), fingerprint)
    assert "pinned" not in header
    assert not read(header, payload, fingerprint).pinned
    header, payload = encode_record(make_record("d", pinned=True), fingerprint)
    assert read(header, payload, fingerprint).pinned
    plain, pinned = Document(text="t"), Document(text="t", pinned=True)
    assert content_hash(plain) != content_hash(pinned)
