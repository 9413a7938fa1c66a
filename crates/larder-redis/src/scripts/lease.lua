-- Reads an entry, and takes the lease on it if it is absent, stale or not an entry at all.
-- KEYS     the entry; if asked for, the counter
-- ARGV     token (8 bytes), stale-at (8 bytes), length of the lease in ms, last byte to return, a
--          random incarnation (8 bytes)
-- Returns  {1, value}  fresh
--          {2, stale, position}  the lease is the caller's; stale is nil where there is no value,
--                                position is there if it was asked for
--          {3, stale}  somebody else holds the lease
local MINUTE_MS = 60000
local key, token, lease_ms = KEYS[1], ARGV[1], tonumber(ARGV[3])

local header, failed = header_of(key)
if failed then return failed end
local is_valued = header and has_value(key)
-- False becomes nil on the wire, where nil would end the array.
local value = is_valued and redis.call('GETRANGE', key, 0, ARGV[4]) or false
if is_valued and is_fresh(header, ARGV[2]) then return {1, value} end

local time = now()
if header then
  local holder = sub(header, 25, 32)
  local left = struct.unpack('>I8', header, 33) - time
  -- One that lasts so much longer than ours would is from before the clock was set back. Whoever
  -- holds it may still fill until we take it.
  local held = holder ~= NONE and left > 0 and left <= math.max(10 * lease_ms, MINUTE_MS)
  -- A request that is sent again because its answer was lost meets its own token.
  if held and holder ~= token then return {3, value} end
end

local at
if KEYS[2] then
  at, failed = position(KEYS[2], ARGV[5])
  if failed then return failed end
end

local lease = token .. struct.pack('>I8', time + lease_ms)
local version = header and version_of(header) or NONE
if is_valued then
  redis.call('SETRANGE', key, 24, lease)
elseif version ~= NONE then
  -- A minimum version, which stays at least as long as it would have.
  redis.call('SETRANGE', key, 24, lease)
  local left = redis.call('PTTL', key)
  if left >= 0 and left < lease_ms then redis.call('PEXPIRE', key, ARGV[3]) end
else
  local placeholder = MAGIC .. '\0\0\0' .. NONE .. NONE .. lease .. NONE .. NONE .. NONE
  redis.call('SET', key, placeholder, 'PX', ARGV[3])
end
return {2, value, at}
