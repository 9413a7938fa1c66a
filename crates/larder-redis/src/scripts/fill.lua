-- Stores a value if the key still carries the caller's lease and the lease has not run out, and if
-- neither versions nor tags forbid it.
-- KEYS     the entry; with tags the counter and the records
-- ARGV     token (8 bytes), and what `store` takes
-- Returns  the versions of the tags as one string if it was stored, else 0
local header, failed = header_of(KEYS[1])
if failed then return failed end
if not header or sub(header, 25, 32) ~= ARGV[1] then return 0 end
if struct.unpack('>I8', header, 33) <= now() then return 0 end

local held, version = version_of(header), version_of(ARGV[2])
local is_older = not at_most(held, version)
-- A value without a version replaces any value, but no minimum version.
if is_older and (version ~= NONE or not has_value(KEYS[1])) then return 0 end
return store(ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6])
