-- Notes a member in a set whose members end by the server's clock.
-- KEYS[1]  the set: members scored by when their time is over, in ms
-- ARGV     member, how long it counts in ms; 0 notes nothing
-- Returns  all members whose time is not over
local key, member, keep, time = KEYS[1], ARGV[1], tonumber(ARGV[2]), now()
local until_then = time + keep
local noted = redis.pcall('ZSCORE', key, member)
if is_wrong_type(noted) then
  redis.call('DEL', key)
  noted = false
end
if type(noted) == 'table' then return noted end
-- Who asks for a shorter time does not shorten what an earlier call promised.
if keep > 0 and (not noted or tonumber(noted) < until_then) then
  redis.call('ZADD', key, string.format('%.0f', until_then), member)
end
redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('%.0f', time))
-- More members than that were not noted by us.
local all = redis.call('ZRANGE', key, -100000, -1, 'WITHSCORES')
if #all == 0 then return {} end
-- The last one ends last. Somebody else's may end never, which is no time to expire at.
local last = math.min(tonumber(all[#all]), time + 100 * 365 * 24 * 3600 * 1000)
redis.call('PEXPIREAT', key, string.format('%.0f', last))
local members = {}
for i = 1, #all, 2 do members[#members + 1] = all[i] end
return members
