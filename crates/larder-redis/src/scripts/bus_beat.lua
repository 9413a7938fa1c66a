-- Tells the listeners where the channel stands.
-- ARGV     channel (empty where the server tells of keys that change), message, incarnation for a new channel (8 bytes)
-- Returns  the position, 16 bytes
local incarnation, n, _, failed = stand(ARGV[3])
if failed then return failed end
-- A server that cannot write, as a replica whose primary is out of reach, may not know of messages
-- elsewhere. It must not say that nothing was missed.
local change
if ARGV[1] == '' and redis.call('PTTL', KEYS[1]) > DAY_MS / 2 then
  -- Who watches the position is told whenever it is written, so this writes nothing.
  change = redis.pcall('XTRIM', KEYS[2], 'MAXLEN', '1000000000000')
else
  change = redis.pcall('PEXPIRE', KEYS[1], DAY_MS)
end
failed = failure(change)
if failed and not is_wrong_type(failed) then return failed end
local position = packed(incarnation, n)
if ARGV[1] == '' then return position end
return failure(redis.pcall('PUBLISH', ARGV[1], 'LRDB\1B' .. position .. ARGV[2])) or position
