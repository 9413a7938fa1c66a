-- What the scripts share.
local NONE = '\0\0\0\0\0\0\0\0'
local MAGIC = 'LRDR\1'
local sub = string.sub

-- Whether a <= b, both of eight bytes, the highest first. Halves are compared because Lua's numbers
-- are doubles, and its own comparison of strings follows the server's locale.
local function at_most(a, b)
  local a_high, a_low = struct.unpack('>I4I4', a)
  local b_high, b_low = struct.unpack('>I4I4', b)
  return a_high < b_high or a_high == b_high and a_low <= b_low
end

local function is_wrong_type(reply)
  return type(reply) == 'table' and reply.err
    and string.find(reply.err, 'WRONGTYPE', 1, true)
end

-- Whether bytes begin as a header does: magic, and whether it was made stale by hand.
local function begins(bytes)
  return sub(bytes, 1, 5) == MAGIC and string.byte(bytes, 6) <= 1
end

-- The front of a string; empty for another type. A second value is an error to return.
local function front(key, bytes)
  local found = redis.pcall('GETRANGE', key, 0, bytes - 1)
  if type(found) ~= 'table' then return found end
  if is_wrong_type(found) then return '' end
  return '', found
end

-- The header of an entry; nil where there is none. A second value is an error to return.
local function header_of(key)
  local header, failed = front(key, 64)
  if failed then return nil, failed end
  local is_header = #header == 64
    and begins(header)
    and at_most(sub(header, 41, 48), sub(header, 49, 56))
  return is_header and header or nil
end

-- The version in front of a value, NONE for bytes that are no entry.
local function version_of(value)
  return #value >= 64 and begins(value) and sub(value, 57, 64) or NONE
end

-- Whether a value with this header is fresh at a time of eight bytes.
local function is_fresh(header, at)
  return sub(header, 6, 6) == '\0' and not at_most(sub(header, 41, 48), at)
end

local function has_value(key)
  return redis.call('STRLEN', key) > 64
end

-- Milliseconds by the server's clock.
local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
