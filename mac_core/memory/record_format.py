"""A record's bytes: a JSON header and a safetensors payload, checked before they are believed.

The header has the format version, the hashes of the networks that made the modulations, dtypes,
shapes and checksums; the payload every tensor and the text. No pickle. Knows no database.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from mac_core.errors import CorruptRecord, ForeignRecord, InvalidInput, StoreError
from mac_core.memory.chunking import Chunk
from mac_core.memory.codebook import Codebook
from mac_core.memory.narrowing import offset_steps
from mac_core.memory.quantization import SlotEncoding
from mac_core.memory.records import DocumentRecord, StoredChunk, StoredModulation, canonical_json
from mac_core.types import Fingerprint

# Every format keeps the header's checksum as it is, so that a flipped bit in the version is found,
# and not taken for a newer program's record, which stops a server.
# 1: int8 slots, int32 offsets. 2: each chunk's slots say how they lie, and offsets are steps.
FORMAT_VERSION = 2
# What the store itself assigns (version, created_at) is not in the header: it is known only inside
# the write, which may happen on another machine.
DOCUMENT_FIELDS = (
    *("id", "namespace", "title", "metadata", "published_at", "expires_at"),
    *("updated_at", "content_hash", "num_tokens"),
)


def encode_record(record: DocumentRecord, fingerprint: Fingerprint) -> tuple[str, bytes]:
    """The record as (header, payload).

    Raises:
        InvalidInput: the text is not valid Unicode or the metadata not valid JSON.
    """
    tensors = {
        f"{chunk.chunk.index}.{name}": tensor.contiguous()
        for chunk in record.chunks
        for name, tensor in chunk.stored.tensors()
    }
    if record.codebook is not None:
        tensors["codebook"] = record.codebook.centroids
    tensors["text"] = _text_tensor(record.text)
    payload = save(tensors)
    header: dict[str, object] = {
        "format_version": FORMAT_VERSION,
        "amortization_hash": fingerprint.amortization_hash,
        "base_lm_hash": fingerprint.base_lm_hash,
        "document": {name: _plain(getattr(record, name)) for name in DOCUMENT_FIELDS}
        | ({"pinned": True} if record.pinned else {}),  # absent: not, as in older records
        "chunks": [[c.chunk.start, c.chunk.end, c.chunk.num_tokens] for c in record.chunks],
        "slots": [asdict(chunk.stored.encoding) for chunk in record.chunks],
        "tensors": {name: _describe(tensor) for name, tensor in tensors.items()},
        "payload_sha256": hashlib.sha256(payload).hexdigest(),
    }
    return canonical_json(header | {"header_sha256": _hash_header(header)}), payload


def decode_record(
    header: str,
    payload: bytes,
    *,
    fingerprint: Fingerprint | None,
    version: int,
    created_at: float,
    name: str = "the record",
) -> DocumentRecord:
    """The record that `encode_record` wrote, every checksum verified.

    Args:
        fingerprint: the networks that will read it; None accepts any (to read text only).
        version: assigned by the store, as is `created_at`.
        name: what to call it in an error.

    Raises:
        CorruptRecord: it does not parse or fails a checksum.
        ForeignRecord: other networks made it.
        StoreError: a newer version of this program wrote it.
    """
    parsed = _checked_header(header, name)
    if fingerprint is not None:
        _check_fingerprint(parsed, fingerprint, name)
    if hashlib.sha256(payload).hexdigest() != parsed.get("payload_sha256"):
        raise CorruptRecord(f"{name}: its {len(payload)} bytes of payload fail their checksum")
    try:
        tensors = load(payload)
        if {key: _describe(tensor) for key, tensor in tensors.items()} != parsed["tensors"]:
            raise ValueError("the payload's tensors are not those that the header describes")
        text = bytes(tensors["text"].numpy()).decode("utf-8")
        encodings = parsed.get("slots", [None] * len(parsed["chunks"]))
        chunks = tuple(
            _decode_chunk(index, span, text, tensors, encoding)
            for index, (span, encoding) in enumerate(zip(parsed["chunks"], encodings, strict=True))
        )
        codebook = Codebook(centroids=tensors["codebook"]) if "codebook" in tensors else None
        return DocumentRecord(
            **parsed["document"],
            text=text,
            chunks=chunks,
            codebook=codebook,
            version=version,
            created_at=created_at,
        )
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CorruptRecord(f"{name}: {error}") from error


def check_record(header: str, payload: bytes, *, name: str = "the record") -> Fingerprint:
    """Verify both checksums without reading a tensor; which networks made it.

    Raises: as `decode_record`, but for ForeignRecord.
    """
    parsed = _checked_header(header, name)
    if hashlib.sha256(payload).hexdigest() != parsed.get("payload_sha256"):
        raise CorruptRecord(f"{name}: its {len(payload)} bytes of payload fail their checksum")
    return Fingerprint(
        amortization_hash=str(parsed.get("amortization_hash")),
        base_lm_hash=str(parsed.get("base_lm_hash")),
    )


def _decode_chunk(
    index: int,
    span: tuple[int, int, int],
    text: str,
    tensors: Mapping[str, Tensor],
    encoding: Mapping[str, Any] | None,
) -> StoredChunk:
    """`encoding`: None in format 1."""
    start, end, num_tokens = span
    prefix = f"{index}."
    mine: dict[str, Any] = {
        key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
    }
    if encoding is None:
        encoding = {"width": mine["slots"].shape[1]}
        mine["token_offsets"] = offset_steps(mine["token_offsets"])
    chunk = Chunk(index=index, text=text[start:end], start=start, end=end, num_tokens=num_tokens)
    return StoredChunk(
        chunk=chunk, stored=StoredModulation(encoding=SlotEncoding(**encoding), **mine)
    )


def _checked_header(header: str, name: str) -> dict[str, Any]:
    try:
        parsed = json.loads(header)
    except ValueError as error:
        raise CorruptRecord(f"{name}: its header is not JSON: {error}") from error
    if not isinstance(parsed, dict) or not isinstance(parsed.get("format_version"), int):
        raise CorruptRecord(f"{name}: its header has no format version")
    expected = parsed.pop("header_sha256", None)
    if _hash_header(parsed) != expected:
        raise CorruptRecord(f"{name}: its header fails its checksum")
    if parsed["format_version"] > FORMAT_VERSION:
        raise StoreError(
            f"{name}: written in record format {parsed['format_version']} by a newer version; "
            f"this one reads up to {FORMAT_VERSION}"
        )
    return parsed


def _check_fingerprint(parsed: Mapping[str, Any], fingerprint: Fingerprint, name: str) -> None:
    for network in ("amortization_hash", "base_lm_hash"):
        made_by, expected = parsed.get(network), getattr(fingerprint, network)
        if made_by != expected:
            raise ForeignRecord(
                f"{name}: made with {network} {made_by}, the model loaded now has {expected}; "
                "run `mac bank reindex` to make its modulations anew from the stored text"
            )


def _hash_header(header: Mapping[str, object]) -> str:
    return hashlib.sha256(canonical_json(header).encode()).hexdigest()


def _describe(tensor: Tensor) -> list[object]:
    return [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]


def _plain(value: object) -> object:
    return dict(value) if isinstance(value, Mapping) else value


def _text_tensor(text: str) -> Tensor:
    """UTF-8 bytes, `(bytes,)` uint8: in the payload, so that its checksum covers the text too."""
    try:
        encoded = bytearray(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise InvalidInput(f"text is not valid Unicode: {error}") from error
    return torch.frombuffer(encoded, dtype=torch.uint8) if encoded else torch.empty(0).byte()
