"""The Lua scripts of the jobs in Redis: each reads and changes at one moment, whole or not at all.

A job is words in `marks` (state, attempts, worker, position, created_at, updated_at,
num_documents, namespace) and its parts in hashes beside them. The first write of each script is
one that a server short of memory refuses, so that none is left half done. A client that lost the
reply sends the same again: submitting, ending and renewing twice are once; a claim whose reply was
lost is a lease that runs out.
"""

from __future__ import annotations

# KEYS: `redis_jobs.KEYS`, the last ones the sets of each state. ARGV[1]: seconds since the epoch,
# or '' for the server's own clock, which all workers share.
_BEGIN = """
local LAST, ORDER, MARKS, DOCUMENTS, RESULTS = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local REASONS, READY, DUE, ENDED = KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local SETS = {queued = KEYS[10], running = KEYS[11], done = KEYS[12], failed = KEYS[13],
              cancelled = KEYS[14], dead = KEYS[15]}
local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) + tonumber(time[2]) / 1000000
end

local function seconds(value) return string.format('%.6f', value) end

local function read(id)
  local mark = redis.call('HGET', MARKS, id)
  if not mark then return nil end
  local state, attempts, worker, position, created_at, updated_at, rest =
    string.match(mark, '^(%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (.+)$')
  return {id = id, state = state, attempts = tonumber(attempts), worker = worker,
          position = position, created_at = created_at, updated_at = updated_at, rest = rest}
end

local function write(job)
  job.updated_at = seconds(now)
  local words = {job.state, string.format('%d', job.attempts), job.worker, job.position,
                 job.created_at, job.updated_at, job.rest}
  redis.call('HSET', MARKS, job.id, table.concat(words, ' '))
end

local function move(job, state)
  local before = job.state
  job.state = state
  write(job)
  redis.call('ZREM', SETS[before], job.id)
  redis.call('ZADD', SETS[state], job.position, job.id)
  redis.call('ZREM', READY, job.id)
end

local function finish(job, state)
  move(job, state)
  redis.call('ZADD', ENDED, seconds(now), job.id)
  redis.call('ZREM', DUE, job.id)
  redis.call('HDEL', DOCUMENTS, job.id)
end

local function shown(job)
  local mark = redis.call('HGET', MARKS, job.id)
  return {job.id, mark, redis.call('HGET', RESULTS, job.id), redis.call('HGET', REASONS, job.id)}
end

local function has_ended(job) return job.state ~= 'queued' and job.state ~= 'running' end
"""

# ARGV: now, id, documents, the mark's last words, the most that may be unfinished. '' : no room.
SUBMIT = (
    _BEGIN
    + """
local id = ARGV[2]
local known = read(id)
if known then return shown(known) end
if redis.call('ZCARD', SETS.queued) + redis.call('ZCARD', SETS.running) >= tonumber(ARGV[5]) then
  return ''
end
redis.call('HSET', DOCUMENTS, id, ARGV[3])
local position = string.format('%.0f', redis.call('INCR', LAST))
local job = {id = id, state = 'queued', attempts = 0, worker = '-', position = position,
             created_at = seconds(now), rest = ARGV[4]}
write(job)
for _, key in ipairs({ORDER, SETS.queued, READY}) do redis.call('ZADD', key, position, id) end
return shown(job)
"""
)

# ARGV: now, worker, lease_s, max_attempts. '' : nothing waits.
CLAIM = (
    _BEGIN
    + """
for _, id in ipairs(redis.call('ZRANGEBYSCORE', DUE, '-inf', seconds(now), 'LIMIT', 0, 100)) do
  local job = read(id)
  if job.state == 'running' then
    local reason = 'its worker was lost in attempt ' .. job.attempts
    redis.call('HSET', REASONS, id, reason)
    if job.attempts >= tonumber(ARGV[4]) then
      finish(job, 'dead')
    else
      move(job, 'queued')
    end
  end
  if job.state == 'queued' then redis.call('ZADD', READY, job.position, id) end
  redis.call('ZREM', DUE, id)
end
local id = redis.call('ZRANGE', READY, 0, 0)[1]
if not id then return '' end
local job = read(id)
job.attempts = job.attempts + 1
job.worker = ARGV[2]
move(job, 'running')
redis.call('ZADD', DUE, seconds(now + tonumber(ARGV[3])), id)
local found = shown(job)
found[5] = redis.call('HGET', DOCUMENTS, id)
return found
"""
)

# ARGV: now, id, worker, lease_s, results or ''.
RENEW = (
    _BEGIN
    + """
local job = read(ARGV[2])
if not job or job.worker ~= ARGV[3] then return 0 end
if ARGV[5] ~= '' and (job.state == 'running' or job.state == 'cancelled') then
  redis.call('HSET', RESULTS, job.id, ARGV[5])
  write(job)
end
if job.state ~= 'running' then return 0 end
redis.call('ZADD', DUE, seconds(now + tonumber(ARGV[4])), job.id)
return 1
"""
)

# ARGV: now, id, worker, state, results.
FINISH = (
    _BEGIN
    + """
local job = read(ARGV[2])
if not job or job.worker ~= ARGV[3] then return 0 end
if job.state == ARGV[4] then return 1 end
if job.state ~= 'running' then return 0 end
redis.call('HSET', RESULTS, job.id, ARGV[5])
finish(job, ARGV[4])
return 1
"""
)

# ARGV: now, id, worker, reason, delay_s, max_attempts, is_attempt. '' : not the worker's.
RELEASE = (
    _BEGIN
    + """
local job = read(ARGV[2])
if not job or job.worker ~= ARGV[3] or job.state ~= 'running' then return '' end
redis.call('HSET', REASONS, job.id, ARGV[4])
if ARGV[7] == '1' and job.attempts >= tonumber(ARGV[6]) then
  finish(job, 'dead')
  return 'dead'
end
if ARGV[7] ~= '1' then job.attempts = job.attempts - 1 end
job.worker = '-'
move(job, 'queued')
redis.call('ZADD', DUE, seconds(now + tonumber(ARGV[5])), job.id)
return 'queued'
"""
)

# ARGV: now, id. The state before, or '' when there is no such job.
CANCEL = (
    _BEGIN
    + """
local job = read(ARGV[2])
if not job then return {'', ''} end
local before = job.state
if not has_ended(job) then finish(job, 'cancelled') end
return {before, shown(job)}
"""
)

# ARGV: now, then ids.
GET = (
    _BEGIN
    + """
local found = {}
for i = 2, #ARGV do
  local job = read(ARGV[i])
  if job then found[#found + 1] = shown(job) end
end
return found
"""
)

# ARGV: now, state or '', a position, how many. The newest before that position.
LIST = (
    _BEGIN
    + """
local found = {}
local ids = redis.call('ZREVRANGEBYSCORE', SETS[ARGV[2]] or ORDER, '(' .. ARGV[3], '-inf',
                       'LIMIT', 0, ARGV[4])
for i, id in ipairs(ids) do found[i] = shown(read(id)) end
return found
"""
)

# ARGV: now, older_than_s, how many at most. How many are gone.
PURGE = (
    _BEGIN
    + """
local before = seconds(now - tonumber(ARGV[2]))
local ids = redis.call('ZRANGEBYSCORE', ENDED, '-inf', '(' .. before, 'LIMIT', 0, ARGV[3])
for _, id in ipairs(ids) do
  local job = read(id)
  redis.call('ZREM', ENDED, id)
  redis.call('ZREM', ORDER, id)
  redis.call('ZREM', SETS[job.state], id)
  for _, key in ipairs({RESULTS, REASONS, MARKS}) do redis.call('HDEL', key, id) end
end
return #ids
"""
)
