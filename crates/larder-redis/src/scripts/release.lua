-- Gives a lease back: clears it from the header, or removes a placeholder that says nothing else.
-- KEYS[1]  the entry
-- ARGV     token (8 bytes)
-- Returns  1 if the lease was the caller's, else 0
local header, failed = header_of(KEYS[1])
if failed then return failed end
if not header or sub(header, 25, 32) ~= ARGV[1] then return 0 end
if version_of(header) ~= NONE or has_value(KEYS[1]) then
  redis.call('SETRANGE', KEYS[1], 24, NONE .. NONE)
else
  redis.call('DEL', KEYS[1])
end
return 1
