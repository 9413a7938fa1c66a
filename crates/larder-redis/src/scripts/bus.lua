-- Where a channel of the bus stands.
-- KEYS[1]  its position, a hash: i the incarnation (8 bytes), n how many messages there were, b how
--          many bytes they had, s the server on which somebody listened first
-- KEYS[2]  its journal, a stream: the message n has the id n-b
-- Both go when the channel was not used for a day.
local DAY_MS = 86400000
-- What a message in the journal counts beside its own length.
local OVERHEAD_BYTES = 64

-- Whether the server is out of memory.
local full = false

local function failure(reply)
  return type(reply) == 'table' and reply.err and reply or nil
end

-- Writes fields of the position; returns the error, if there is one. A server out of memory refuses
-- a write that comes first in a script, and none behind one that frees: the journal makes room, and
-- messages go on being numbered.
local function write(...)
  local failed = failure(redis.pcall('HSET', KEYS[1], ...))
  if not failed or not string.find(failed.err, 'OOM', 1, true) then return failed end
  full = true
  redis.pcall('DEL', KEYS[2])
  return failure(redis.pcall('HSET', KEYS[1], ...))
end

-- Begins a new incarnation; returns the error, if there is one.
local function begin(incarnation)
  local failed = write('i', incarnation, 'n', 0, 'b', 0)
  if is_wrong_type(failed) then
    redis.pcall('DEL', KEYS[1])
    failed = write('i', incarnation, 'n', 0, 'b', 0)
  end
  return failed or failure(redis.pcall('DEL', KEYS[2]))
end

-- Incarnation, messages and bytes. A channel that is not known, or whose position is damaged, begins
-- with `incarnation`. The fourth value is an error to return.
local function stand(incarnation)
  local at = redis.pcall('HMGET', KEYS[1], 'i', 'n', 'b')
  local failed = failure(at)
  if failed and not is_wrong_type(failed) then return nil, nil, nil, failed end
  if not failed and at[1] and #at[1] == 8 and at[2] and at[3] then
    local n, b = string.match(at[2], '^%d+$'), string.match(at[3], '^%d+$')
    n, b = tonumber(n or 'none'), tonumber(b or 'none')
    -- Beyond 2^53 neighbours would be the same number.
    if n and b and n < 2 ^ 53 and b < 2 ^ 53 then return at[1], n, b end
  end
  failed = begin(incarnation)
  if failed then return nil, nil, nil, failed end
  return incarnation, 0, 0
end

local function packed(incarnation, n)
  return incarnation .. struct.pack('>I8', n)
end
