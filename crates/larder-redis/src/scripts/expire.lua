-- Makes a value stale in place and voids the lease on it; a placeholder is removed.
-- KEYS[1]  the entry
-- ARGV     the time from which the value counts as stale (8 bytes)
-- Returns  1 if there was an entry, else 0
local header = redis.pcall('GETRANGE', KEYS[1], 0, 55)
if type(header) == 'table' then
  if string.find(header.err, 'WRONGTYPE', 1, true) then return 0 end
  return header
end
if #header ~= 56 or string.sub(header, 1, 8) ~= 'LRDR\1\0\0\0' then return 0 end
if redis.call('STRLEN', KEYS[1]) <= 56 then
  redis.call('DEL', KEYS[1])
  return 1
end
local fresh_until = string.sub(header, 41, 48)
for i = 1, 8 do
  local x, y = string.byte(ARGV[1], i), string.byte(fresh_until, i)
  if x < y then fresh_until = ARGV[1] end
  if x ~= y then break end
end
local written = redis.pcall('SETRANGE', KEYS[1], 24, string.rep('\0', 16) .. fresh_until)
-- A server out of memory refuses SETRANGE but takes DEL, and the invalidation must get through.
if type(written) == 'table' then redis.call('DEL', KEYS[1]) end
return 1
