-- What a value with tags goes through before it is stored; the rules are those of `Tagged`.
-- KEYS[2]  the counter, and behind it the records in the order of the value's versions
-- Returns  the versions that the records hold, as one string; nil if the value must not be stored.
--          A second value is an error to return.
local function tag(value, since, ttl, record_ttl, incarnation)
  local here, failed = position(KEYS[2], incarnation)
  if failed then return nil, failed end
  local refused = since ~= '' and sub(since, 1, 8) ~= sub(here, 1, 8)
  local versions = {}
  for i = 3, #KEYS do
    local record
    record, failed = front(KEYS[i], 25)
    if failed then return nil, failed end
    if #record == 24 then
      local same_life = since ~= '' and sub(record, 9, 16) == sub(since, 1, 8)
      if same_life and not at_most(sub(record, 17, 24), sub(since, 9, 16)) then refused = true end
      local left = redis.call('PTTL', KEYS[i])
      if left >= 0 and left < tonumber(ttl) then redis.call('PEXPIRE', KEYS[i], record_ttl) end
    else
      if since ~= '' and since ~= here then refused = true end
      local at = 65 + 8 * (i - 3)
      record = sub(value, at, at + 7) .. here
      redis.call('SET', KEYS[i], record, 'PX', record_ttl)
    end
    versions[#versions + 1] = sub(record, 1, 8)
  end
  if refused then return nil end
  return table.concat(versions)
end

-- Stores the value of ARGV under KEYS[1], with its tags if there are any.
-- ARGV     value, time to live in ms, and with tags: position of the counter before the load
--          (16 bytes or empty), time to live of new records in ms, a random incarnation (8 bytes)
-- Returns  what the script returns: the versions of the tags as one string, or 0
local function store(value, ttl, since, record_ttl, incarnation)
  local versions = ''
  if #KEYS > 1 then
    local failed
    versions, failed = tag(value, since, ttl, record_ttl, incarnation)
    if failed then return failed end
    if not versions then return 0 end
  end
  redis.call('SET', KEYS[1], value, 'PX', ttl)
  if versions ~= sub(value, 65, 64 + #versions) then
    redis.call('SETRANGE', KEYS[1], 64, versions)
  end
  return versions
end
