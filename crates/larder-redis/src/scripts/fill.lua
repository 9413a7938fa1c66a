-- Stores a value if the key still carries the caller's lease and the lease has not run out.
-- KEYS[1]  the entry
-- ARGV     token (8 bytes), value, time to live in ms
-- Returns  1 if it was stored, else 0
local header = redis.pcall('GETRANGE', KEYS[1], 0, 55)
if type(header) == 'table' then
  if string.find(header.err, 'WRONGTYPE', 1, true) then return 0 end
  return header
end
if #header ~= 56 or string.sub(header, 1, 8) ~= 'LRDR\1\0\0\0' then return 0 end
if string.sub(header, 25, 32) ~= ARGV[1] then return 0 end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if struct.unpack('>I8', header, 33) <= now then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
