-- Makes a value stale in place and voids the lease on it; a placeholder that carries no minimum
-- version is removed, and so is what cannot be read: it may be an entry of another release, which
-- that one would go on serving.
-- KEYS[1]  the entry
-- ARGV     when that was, for those who count its grace (8 bytes)
-- Returns  1 if there was anything, else 0
local header, failed = header_of(KEYS[1])
if failed then return failed end
if not header then return redis.call('DEL', KEYS[1]) end
if version_of(header) == NONE and not has_value(KEYS[1]) then
  redis.call('DEL', KEYS[1])
  return 1
end
local fresh_until = sub(header, 41, 48)
if at_most(ARGV[1], fresh_until) then fresh_until = ARGV[1] end
local front = sub(header, 1, 5) .. '\1' .. sub(header, 7, 24) .. NONE .. NONE .. fresh_until
local written = redis.pcall('SETRANGE', KEYS[1], 0, front)
-- A server out of memory refuses SETRANGE but takes DEL, and the invalidation must get through.
if type(written) == 'table' then redis.call('DEL', KEYS[1]) end
return 1
