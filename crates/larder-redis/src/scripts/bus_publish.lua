-- Numbers a message, writes it into the journal and tells the listeners.
-- ARGV     channel (empty where the server tells of keys that change), message, incarnation for a new channel (8 bytes), how many messages and how many
--          bytes the journal keeps
-- Returns  the position, 16 bytes

-- The bytes up to and including the oldest message of the journal.
local function oldest()
  local entry = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
  return entry and tonumber(string.match(entry[1], '%-(%d+)$'))
end

-- Halves the journal until it keeps to its bytes.
local function trim(b)
  local first = oldest()
  while first and b - first > tonumber(ARGV[5]) do
    redis.call('XTRIM', KEYS[2], 'MAXLEN', math.floor(redis.call('XLEN', KEYS[2]) / 2))
    first = oldest()
  end
end

local function add(n, b)
  local id = string.format('%.0f-%.0f', n, b)
  return failure(redis.pcall('XADD', KEYS[2], 'MAXLEN', '~', ARGV[4], id, 'm', ARGV[2]))
end

local function keep(n, b)
  local failed = add(n, b)
  if failed then
    -- Something else stands there, or what follows on a later number.
    redis.pcall('DEL', KEYS[2])
    failed = add(n, b)
  end
  -- Looking at the bytes now and then is enough. The message gets through even where that fails.
  if n % 64 == 0 then pcall(trim, b) end
  redis.pcall('PEXPIRE', KEYS[2], DAY_MS)
  return failed
end

-- The position of the message; the second value is an error.
local function number()
  local incarnation, n, b, failed = stand(ARGV[3])
  if failed then return nil, failed end
  n, b = n + 1, b + #ARGV[2] + OVERHEAD_BYTES
  failed = write('n', n, 'b', b)
  if not failed and not full then failed = keep(n, b) end
  redis.pcall('PEXPIRE', KEYS[1], DAY_MS)
  return packed(incarnation, n), failed
end

local function tell(frame)
  if ARGV[1] == '' then return nil end
  return failure(redis.pcall('PUBLISH', ARGV[1], frame))
end

local position, failed = number()
if not failed then return tell('LRDB\1M' .. position .. ARGV[2]) or position end
-- Told without a number, because it must get through. Whoever misses it finds the incarnation gone.
redis.pcall('DEL', KEYS[1], KEYS[2])
tell('LRDB\1U' .. ARGV[2])
return failed
