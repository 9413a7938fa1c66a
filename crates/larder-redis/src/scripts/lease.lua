-- Reads an entry, and takes the lease on it if it is absent, stale or not an entry at all.
-- KEYS[1]  the entry
-- ARGV     token (8 bytes), stale-at (8 bytes), length of the lease in ms, last byte to return
-- Returns  {1, value}  fresh
--          {2, stale}  the lease is the caller's; stale is nil where there is no value
--          {3, stale}  somebody else holds the lease
local NONE = string.rep('\0', 8)

-- Whether a <= b. Lua's own comparison of strings follows the server's locale.
local function at_most(a, b)
  for i = 1, 8 do
    local x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then return x < y end
  end
  return true
end

local header = redis.pcall('GETRANGE', KEYS[1], 0, 55)
if type(header) == 'table' then
  if not string.find(header.err, 'WRONGTYPE', 1, true) then return header end
  header = ''
end
local fresh_until = string.sub(header, 41, 48)
local is_entry = #header == 56
  and string.sub(header, 1, 8) == 'LRDR\1\0\0\0'
  and at_most(fresh_until, string.sub(header, 49, 56))
local has_value = is_entry and redis.call('STRLEN', KEYS[1]) > 56

local value = false
if has_value then value = redis.call('GETRANGE', KEYS[1], 0, ARGV[4]) end
if has_value and not at_most(fresh_until, ARGV[2]) then return {1, value} end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if is_entry then
  local holder = string.sub(header, 25, 32)
  local held = holder ~= NONE and struct.unpack('>I8', header, 33) > now
  -- A request that is sent again because its answer was lost meets its own token.
  if held and holder ~= ARGV[1] then return {3, value} end
end

local lease = ARGV[1] .. struct.pack('>I8', now + ARGV[3])
if has_value then
  redis.call('SETRANGE', KEYS[1], 24, lease)
else
  local placeholder = 'LRDR\1\0\0\0' .. NONE .. NONE .. lease .. NONE .. NONE
  redis.call('SET', KEYS[1], placeholder, 'PX', ARGV[3])
end
return {2, value}
