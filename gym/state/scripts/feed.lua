-- Functions shared by the scripts of a batch's consumers; loaded between lib.lua and each of them.
-- A unit is identified by a log id: a rollout by that of its result, a group by that of its last result. A result
-- that was taken back has no entry any more, so its unit is stale.
local FEEDS, FEED, OUT, LEASES, ENDS = unpack(KEYS, #KEYS - 4)
local LATE_ACK_MS = 3600000

local LOOKUPS = 500 -- rollouts in one call; one group may exceed it
local lookups = 0

-- Return whether a log id comes after another one. The server's clock has 13 digits, so ids of one length compare as texts do.
local function later(id, other)
  if #id == #other then return id > other end
  local ms, other_ms = string.sub(id, 1, 13), string.sub(other, 1, 13)
  return ms > other_ms or ms == other_ms and #id > #other
end

-- Return the log ids of a group's results by sample, the last one, and the counts of their outcomes; nil until all
-- have ended.
local function group_results(row)
  local samples = row_header(row)
  if not samples then return nil end
  local ids, last, outcomes = {}, '', { s = 0, f = 0, c = 0, e = 0 }
  for from = 0, samples - 1, 500 do
    local members = {}
    for sample = from, math.min(from + 499, samples - 1) do members[#members + 1] = row .. ':' .. sample end
    lookups = lookups + #members
    for _, value in ipairs(redis.call('HMGET', DONE, unpack(members))) do
      if not value then return nil end
      local letter, id = string.match(value, '^([sfce])|.*|(%d+%-%d+)$')
      if not letter then return nil end
      ids[#ids + 1] = id
      outcomes[letter] = outcomes[letter] + 1
      if later(id, last) then last = id end
    end
  end
  return ids, last, outcomes
end

-- Return whether the consumer has acknowledged all results of a batch that has ended.
local function is_done(cursor)
  return redis.call('HEXISTS', META, 'ended_at') == 1 and redis.call('ZCARD', OUT) == 0
    and #redis.call('XRANGE', LOG, '(' .. cursor, '+', 'COUNT', 1) == 0
end

-- Let the consumer's keys expire with the batch. Return whether it is done.
local function close(consumer, cursor)
  local done = is_done(cursor)
  local since = redis.call('HGET', FEEDS, consumer)
  if not done then
    redis.call('HSET', FEEDS, consumer, '')
  elseif not since or since == '' or tonumber(since) < tonumber(redis.call('HGET', META, 'ended_at')) then
    redis.call('HSET', FEEDS, consumer, now_ms())
  end
  local left = redis.call('PTTL', META)
  for i = #KEYS - 4, #KEYS do
    if left > 0 then redis.call('PEXPIRE', KEYS[i], left) else redis.call('PERSIST', KEYS[i]) end
  end
  return done and 1 or 0
end
