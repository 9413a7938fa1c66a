-- Tells the listeners where the channel stands.
-- ARGV     channel, message, incarnation for a new channel (8 bytes)
-- Returns  the position, 16 bytes
local incarnation, n, _, failed = stand(ARGV[3])
if failed then return failed end
-- A server that cannot write, as a replica whose primary is out of reach, may not know of messages
-- elsewhere. It must not say that nothing was missed.
failed = failure(redis.pcall('PEXPIRE', KEYS[1], DAY_MS))
if failed then return failed end
local position = packed(incarnation, n)
return failure(redis.pcall('PUBLISH', ARGV[1], 'LRDB\1B' .. position .. ARGV[2])) or position
