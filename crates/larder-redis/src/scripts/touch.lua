-- Keeps a value, or the record of a tag, for at least so long; a placeholder, and what stays for ever,
-- is left alone. In a script, because a header alone must not be prolonged, because what has more time
-- must keep it, and because PEXPIRE takes GT from version 7 on.
-- KEYS[1]  the entry or the record
-- ARGV     time to live in ms, and that of records in ms: longer, so that they seldom change
-- Returns  1 if it is kept longer now, else 0
local length = redis.pcall('STRLEN', KEYS[1])
if is_wrong_type(length) then return 0 end
if type(length) == 'table' then return length end
local left = redis.call('PTTL', KEYS[1])
if length == 64 or left < 0 or left >= tonumber(ARGV[1]) then return 0 end
return redis.call('PEXPIRE', KEYS[1], length == 24 and ARGV[2] or ARGV[1])
