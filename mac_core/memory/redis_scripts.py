"""The Lua scripts of the Redis store: what must be seen or done at one moment.

Each write is one of these, whole or not at all.

A client that lost the reply sends the same write again. So a script first looks at what the
writer's last write was: the same mark gets the same answer, and nothing is written twice.

Redis does not roll a failed script back. The stream's entry is therefore the first write: what
can refuse a write (memory, a read-only server, a disk that cannot be saved to) refuses that one,
and the rest cannot fail. Numbers are passed on as they came: Lua's are floats.
"""

from __future__ import annotations

# KEYS of both: meta, order, stamps, headers, payloads, expiry, changes, writer.
# Both return version, mark of the version before (what the writer must have seen), removed ids.
_BEGIN = """
local META, ORDER, STAMPS, HEADERS = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local PAYLOADS, EXPIRY, CHANGES, WRITER = KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local mark, max_changes, writer_s = ARGV[1], ARGV[2], ARGV[3]
local done = redis.call('GET', WRITER)
if done then
  done = cmsgpack.unpack(done)
  if done[1] == mark then return {done[2], done[3], done[4]} end
end
local meta = redis.call('HMGET', META, 'version', 'mark', 'position')
local before = meta[2] or ''
local version = string.format('%.0f', tonumber(meta[1] or '0') + 1)

local function sizes(stamp)
  return string.match(stamp, '^%S+ %S+ %S+ (%S+) (%S+) %S+ (%S+) ')
end

local function now()
  local time = redis.call('TIME')
  return time[1] .. '.' .. string.format('%06d', time[2])
end

local function finish(removed)
  local at = now()
  redis.call('HSETNX', META, 'created_at', at)
  redis.call('HSET', META, 'version', version, 'mark', mark, 'updated_at', at)
  redis.call('HDEL', META, 'deleted_at')
  local result = cmsgpack.pack({mark, version, before, removed})
  redis.call('SET', WRITER, result, 'EX', writer_s)
  return {version, before, removed}
end
"""

# ARGV: mark, max_changes, writer_s, the change as JSON, then eight for each document, as
# `redis_rows.arguments_of` gives them. No id stands there twice.
PUT = (
    _BEGIN
    + """
redis.call('XADD', CHANGES, 'MAXLEN', '~', max_changes, version .. '-0',
           'mark', mark, 'put', ARGV[4])
local position = tonumber(meta[3] or '0')
local chunks, bytes = 0, 0
for i = 5, #ARGV, 8 do
  local id, created_at, num_chunks, num_bytes = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local old = redis.call('HGET', STAMPS, id)
  if old then
    local old_created_at, old_chunks, old_bytes = sizes(old)
    created_at = old_created_at
    chunks, bytes = chunks - old_chunks, bytes - old_bytes
  end
  chunks, bytes = chunks + num_chunks, bytes + num_bytes
  position = position + 1
  local place = string.format('%.0f', position)
  local stamp = {version, mark, place, created_at, num_chunks, ARGV[i + 4]}
  redis.call('HSET', STAMPS, id, table.concat(stamp, ' '))
  redis.call('ZADD', ORDER, place, id)
  redis.call('HSET', HEADERS, id, ARGV[i + 6])
  redis.call('HSET', PAYLOADS, id, ARGV[i + 7])
  if ARGV[i + 5] == '' then
    redis.call('ZREM', EXPIRY, id)
  else
    redis.call('ZADD', EXPIRY, ARGV[i + 5], id)
  end
end
redis.call('HSET', META, 'position', string.format('%.0f', position))
redis.call('HINCRBY', META, 'chunks', string.format('%.0f', chunks))
redis.call('HINCRBY', META, 'bytes', string.format('%.0f', bytes))
return finish({})
"""
)

# ARGV: mark, max_changes, writer_s, expired_by or '', then the ids, none twice. Without anything
# to remove nothing is written, and the version is the present one.
DELETE = (
    _BEGIN
    + """
local expired_by = tonumber(ARGV[4])
local removed = {}
for i = 5, #ARGV do
  local is_due = redis.call('HEXISTS', STAMPS, ARGV[i]) == 1
  if is_due and expired_by then
    local expires_at = redis.call('ZSCORE', EXPIRY, ARGV[i])
    is_due = expires_at and tonumber(expires_at) <= expired_by
  end
  if is_due then removed[#removed + 1] = ARGV[i] end
end
if #removed == 0 then return {meta[1] or '0', before, removed} end
redis.call('XADD', CHANGES, 'MAXLEN', '~', max_changes, version .. '-0',
           'mark', mark, 'delete', cjson.encode(removed))
local chunks, bytes = 0, 0
for _, id in ipairs(removed) do
  local _, old_chunks, old_bytes = sizes(redis.call('HGET', STAMPS, id))
  chunks, bytes = chunks - old_chunks, bytes - old_bytes
  redis.call('HDEL', STAMPS, id)
  redis.call('HDEL', HEADERS, id)
  redis.call('HDEL', PAYLOADS, id)
  redis.call('ZREM', ORDER, id)
  redis.call('ZREM', EXPIRY, id)
end
redis.call('HINCRBY', META, 'chunks', string.format('%.0f', chunks))
redis.call('HINCRBY', META, 'bytes', string.format('%.0f', bytes))
return finish(removed)
"""
)

# ARGV: mark, max_changes, writer_s. As "removed" something when there was something to do.
CREATE = (
    _BEGIN
    + """
if meta[1] and redis.call('HEXISTS', META, 'deleted_at') == 0 then return {meta[1], before, {}} end
redis.call('XADD', CHANGES, 'MAXLEN', '~', max_changes, version .. '-0',
           'mark', mark, 'create', '1')
return finish({'1'})
"""
)

# ARGV: mark, max_changes, writer_s. As "removed" the number of documents that went. Version,
# position and stream stay: the name's next write goes on from them.
DROP = (
    _BEGIN
    + """
if not meta[1] or redis.call('HEXISTS', META, 'deleted_at') == 1 then
  return {meta[1] or '0', before, {}}
end
redis.call('XADD', CHANGES, 'MAXLEN', '~', max_changes, version .. '-0', 'mark', mark, 'drop', '1')
local count = string.format('%.0f', redis.call('ZCARD', ORDER))
redis.call('UNLINK', ORDER, STAMPS, HEADERS, PAYLOADS, EXPIRY)
local result = finish({count})
redis.call('HSET', META, 'chunks', '0', 'bytes', '0', 'deleted_at', now())
redis.call('HDEL', META, 'created_at')
return result
"""
)

# KEYS: namespaces, announcements. ARGV: the namespace. Whoever waits for new namespaces is woken.
REGISTER = """
if redis.call('SADD', KEYS[1], ARGV[1]) == 1 then
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', 100, '*', 'new', '1')
end
return 1
"""

# Readings are scripts and not MULTI, whose every command is refused while memory is full.

# KEYS: hashes. ARGV: fields. A list of values for each hash.
FIELDS = """
local found = {}
for i, key in ipairs(KEYS) do found[i] = redis.call('HMGET', key, unpack(ARGV)) end
return found
"""

# KEYS: meta, stamps. Version and mark, and every stamp after its id.
STAMPS = """
return {redis.call('HMGET', KEYS[1], 'version', 'mark'), redis.call('HGETALL', KEYS[2])}
"""
