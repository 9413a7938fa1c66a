-- Where a counter stands: its incarnation and its count, eight bytes each. One that is missing or
-- damaged begins anew with `incarnation`. A second value is an error to return.
local function position(counter, incarnation)
  local at = redis.pcall('HMGET', counter, 'i', 'n')
  if at.err and not is_wrong_type(at) then return nil, at end
  local count = not at.err and string.match(at[2] or '0', '^%d+$')
  count = count and tonumber(count)
  -- Beyond 2^53 neighbours would be packed as the same bytes.
  if at[1] and #at[1] == 8 and count and count < 2 ^ 53 then
    return at[1] .. struct.pack('>I8', count)
  end
  if at.err or at[1] or at[2] then redis.call('DEL', counter) end
  redis.call('HSET', counter, 'i', incarnation, 'n', 0)
  return incarnation .. NONE
end
