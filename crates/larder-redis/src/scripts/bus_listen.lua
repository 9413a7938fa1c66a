-- Prepares a channel for a listener. A server that is another one than before, after a restart or a
-- failover, may have lost the last messages, and their numbers would be given again; so a new
-- incarnation begins there.
-- ARGV     the server (empty if it does not say), incarnation for a new channel (8 bytes)
local _, _, _, failed = stand(ARGV[2])
if failed then return failed end
if ARGV[1] == '' then return redis.status_reply('OK') end
local server = redis.call('HGET', KEYS[1], 's')
if server == ARGV[1] then return redis.status_reply('OK') end
if server then failed = begin(ARGV[2]) end
return failed or write('s', ARGV[1]) or redis.status_reply('OK')
