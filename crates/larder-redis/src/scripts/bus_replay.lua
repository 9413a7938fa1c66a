-- Reads the messages behind a position, in part where they are many.
-- ARGV     its incarnation (8 bytes) and number, incarnation for a new channel (8 bytes), how many
--          messages to return, how many bytes of them, the longest message there can be
-- Returns  {position of the channel, messages}, or {position of the channel} if some are gone
local incarnation, n, _, failed = stand(ARGV[3])
if failed then return failed end
local position = packed(incarnation, n)
local after = tonumber(ARGV[2])
if incarnation ~= ARGV[1] or after > n then return {position} end

local from, to = string.format('%.0f', after + 1), string.format('%.0f', n)
local entries = {}
if after < n then entries = redis.pcall('XRANGE', KEYS[2], from, to, 'COUNT', ARGV[4]) end
if is_wrong_type(entries) then return {position} end
if entries.err then return entries end
-- The first entry that is missing, as any other that is, means that the rest proves nothing.
if after < n and #entries == 0 then return {position} end

local messages, bytes = {}, 0
for k, entry in ipairs(entries) do
  local number, name, message = string.match(entry[1], '^(%d+)%-'), entry[2][1], entry[2][2]
  if tonumber(number) ~= after + k or name ~= 'm' or #message > tonumber(ARGV[6]) then
    return {position}
  end
  if k > 1 and bytes + #message > tonumber(ARGV[5]) then break end
  messages[k] = message
  bytes = bytes + #message
end
return {position, messages}
