"""Putting namespaces back into Redis: staged beside what is there, then swapped in one script.

Until the swap nobody sees anything of it, and what a killed restore has staged expires by itself.
A script of a cluster takes one slot: there each slot's namespaces are swapped by themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from itertools import islice
from uuid import uuid4

from redis.exceptions import RedisError

from mac_core.errors import NamespaceNotEmpty, StoreError
from mac_core.memory.record_format import encode_record
from mac_core.memory.records import DocumentRecord
from mac_core.memory.redis_cluster import NO_PRIMARY, Question, RedisClient, ask_all, by_slot
from mac_core.memory.redis_keys import NamespaceKeys
from mac_core.memory.redis_rows import arguments_of
from mac_core.memory.restoring import NamespaceContent, version_after
from mac_core.types import Fingerprint

STAGED_S = 3600  # what is staged stays that long after the last document that was added
STAGED_AT_ONCE = 16  # documents in memory; each is about 0.1 MB a chunk

# KEYS: twelve for each namespace: meta, order, stamps, headers, payloads, expiry, changes, and the
# five staged ones. ARGV: mark, max_changes, then six for each: the version that
# it must have, the one that it gets, is_replacing, position, chunks, bytes. All or nothing: what
# can refuse a write refuses the first one. A second sending finds its own mark, and is done.
SWAP = """
local mark, max_changes = ARGV[1], ARGV[2]
local count = #KEYS / 12
if redis.call('HGET', KEYS[1], 'mark') == mark then return {'done'} end
for i = 0, count - 1 do
  local meta, order = KEYS[12 * i + 1], KEYS[12 * i + 2]
  if (redis.call('HGET', meta, 'version') or '0') ~= ARGV[6 * i + 3] then
    return {'moved', tostring(i)}
  end
  local size = redis.call('ZCARD', order)
  if size > 0 and ARGV[6 * i + 5] == '0' then return {'full', tostring(i), tostring(size)} end
end
local time = redis.call('TIME')
local now = time[1] .. '.' .. string.format('%06d', time[2])
for i = 0, count - 1 do
  local version = ARGV[6 * i + 4]
  redis.call('XADD', KEYS[12 * i + 7], 'MAXLEN', '~', max_changes, version .. '-0',
             'mark', mark, 'restore', '1')
end
for i = 0, count - 1 do
  local meta = KEYS[12 * i + 1]
  for k = 2, 6 do
    local old, staged = KEYS[12 * i + k], KEYS[12 * i + 6 + k]
    redis.call('UNLINK', old)
    if redis.call('EXISTS', staged) == 1 then
      redis.call('RENAME', staged, old)
      redis.call('PERSIST', old)
    end
  end
  redis.call('HSETNX', meta, 'created_at', now)
  redis.call('HSET', meta, 'version', ARGV[6 * i + 4], 'mark', mark, 'updated_at', now,
             'position', ARGV[6 * i + 6], 'chunks', ARGV[6 * i + 7], 'bytes', ARGV[6 * i + 8])
  redis.call('HDEL', meta, 'deleted_at')
end
return {'done'}
"""
PARTS = ("order", "stamps", "headers", "payloads", "expiry")


@dataclass(slots=True)
class _Staged:
    """One namespace beside the present one."""

    content: NamespaceContent
    before: int  # the version that it is to replace
    version: int
    keys: NamespaceKeys
    parts: tuple[str, ...]  # keys of the staged parts, in the order of `PARTS`
    num_documents: int = 0
    num_chunks: int = 0
    num_bytes: int = 0


def restore(
    client: RedisClient,
    contents: Sequence[NamespaceContent],
    *,
    fingerprint: Fingerprint,
    is_replacing: bool,
    max_changes: int,
) -> dict[str, int]:
    """The version of each namespace, once all of them are in place.

    Raises:
        NamespaceNotEmpty: one holds documents, and they are not to be replaced.
        StoreError: one was written to meanwhile. In both cases nothing was changed, except that a
            cluster may have put other namespaces in place before; the error then names them.
    """
    mark = uuid4().hex
    everything: list[_Staged] = []
    try:
        for content in contents:
            everything.append(_begin(client, content, mark, is_replacing=is_replacing))
            _stage(client, everything[-1], mark, fingerprint)
        _swap(client, everything, mark, is_replacing=is_replacing, max_changes=max_changes)
    finally:  # after the swap there are none
        with suppress(RedisError, OSError, *NO_PRIMARY):  # it expires
            for staged in everything:
                client.unlink(*staged.parts)
    return {staged.content.namespace: staged.version for staged in everything}


def _begin(
    client: RedisClient, content: NamespaceContent, mark: str, *, is_replacing: bool
) -> _Staged:
    keys = NamespaceKeys.of(content.namespace)
    size = int(client.zcard(keys.order))
    if size and not is_replacing:  # looked at again when it counts; this saves the work
        raise NamespaceNotEmpty(namespace=content.namespace, num_documents=size)
    before = int(client.hget(keys.meta, "version") or 0)
    prefix = keys.meta.removesuffix("meta")
    return _Staged(
        content=content,
        before=before,
        version=version_after(before, content.version),
        keys=keys,
        parts=tuple(f"{prefix}restore:{mark}:{part}" for part in PARTS),
    )


def _stage(client: RedisClient, staged: _Staged, mark: str, fingerprint: Fingerprint) -> None:
    order, stamps, headers, payloads, expiry = staged.parts
    for part in _batches(staged.content):
        writes: list[Question] = []
        for record in part:
            staged.num_documents += 1
            place = staged.num_documents
            name, created_at, chunks, size, rest, expires_at, header, payload = arguments_of(
                record, *encode_record(record, fingerprint)
            )
            stamp = f"{staged.version} {mark} {place} ".encode() + b" ".join(
                (created_at, chunks, rest)
            )
            writes += [
                ("ZADD", order, place, name),
                ("HSET", stamps, name, stamp),
                ("HSET", headers, name, header),
                ("HSET", payloads, name, payload),
            ]
            if expires_at:
                writes.append(("ZADD", expiry, expires_at, name))
            staged.num_chunks += int(chunks)
            staged.num_bytes += int(size)
        ask_all(client, [*writes, *(("EXPIRE", key, STAGED_S) for key in staged.parts)])


def _swap(
    client: RedisClient,
    everything: Sequence[_Staged],
    mark: str,
    *,
    is_replacing: bool,
    max_changes: int,
) -> None:
    """Put all of them in place at one moment; on a cluster, those of each slot at one moment."""
    done: list[str] = []
    for group in by_slot(client, everything, lambda staged: staged.keys.meta):
        keys: list[str] = []
        arguments: list[str] = [mark, str(max_changes)]
        for staged in group:
            own = [getattr(staged.keys, field.name) for field in fields(NamespaceKeys)]
            keys += [*own, *staged.parts]
            arguments += [str(staged.before), str(staged.version), str(int(is_replacing))]
            sizes = (staged.num_documents, staged.num_chunks, staged.num_bytes)
            arguments += [str(size) for size in sizes]
        try:
            outcome, *place = client.register_script(SWAP)(keys=keys, args=arguments)
        except (RedisError, OSError, *NO_PRIMARY) as error:
            if not done:
                raise
            kept = ", ".join(map(repr, done))
            raise StoreError(f"{kept} restored, and then it broke off: {error}") from error
        if outcome != b"done":
            name = group[int(place[0])].content.namespace
            if outcome == b"full" and not done:
                raise NamespaceNotEmpty(namespace=name, num_documents=int(place[1]))
            kept = f"{', '.join(map(repr, done))} restored" if done else "nothing was changed"
            raise StoreError(f"namespace {name!r} was written to while it was restored: {kept}")
        done += [staged.content.namespace for staged in group]


def _batches(content: NamespaceContent) -> Iterator[list[DocumentRecord]]:
    records = iter(content.records)
    while part := list(islice(records, STAGED_AT_ONCE)):
        yield part
