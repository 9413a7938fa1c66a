-- Stores a value whatever the key held, unless that is of a higher version or the tags forbid it.
-- KEYS     the entry; with tags the counter and the records
-- ARGV     what `store` takes; the value may be a header alone that carries a minimum version
-- Returns  the versions of the tags as one string if it was stored, else 0
local version = version_of(ARGV[1])
-- Looked at whatever the version is: what a server watches for its reader is what a script reads, and
-- whoever wrote a value has it in memory.
local header, failed = header_of(KEYS[1])
if failed then return failed end
if version ~= NONE then
  local held = header and version_of(header) or NONE
  if not at_most(held, version) then return 0 end
  -- A value of the minimum version is new enough.
  if held == version and #ARGV[1] == 64 and has_value(KEYS[1]) then return 0 end
end
return store(ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5])
