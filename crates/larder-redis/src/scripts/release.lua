-- Gives a lease back: removes a placeholder, or clears the lease from a stale value's header.
-- KEYS[1]  the entry
-- ARGV     token (8 bytes)
-- Returns  1 if the lease was the caller's, else 0
local header = redis.pcall('GETRANGE', KEYS[1], 0, 55)
if type(header) == 'table' then
  if string.find(header.err, 'WRONGTYPE', 1, true) then return 0 end
  return header
end
if #header ~= 56 or string.sub(header, 1, 8) ~= 'LRDR\1\0\0\0' then return 0 end
if string.sub(header, 25, 32) ~= ARGV[1] then return 0 end
if redis.call('STRLEN', KEYS[1]) > 56 then
  redis.call('SETRANGE', KEYS[1], 24, string.rep('\0', 16))
else
  redis.call('DEL', KEYS[1])
end
return 1
