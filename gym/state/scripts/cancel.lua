-- Begin to end unfinished rollouts, and end a bounded part of them; further calls end the rest.
-- ARGV: scope (batch | group | rollout), row or member, outcome letter, reason, most rollouts to look at in this call,
--   whether to continue a batch that is being cancelled already (0 | 1), most tombstones of a batch
-- Returns {known, stopped, left, at once}: known 0 leaves a tombstone, -1 = no such sample in the group, -2 = no room for a
-- tombstone. `left` have not ended yet; if `at once` is 0, another call soon would find nothing to do.
-- `swept` in META is the cursor of the pass over LIVE, `all` when it is over.
even_when_full()
local scope, name, letter, reason, most = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])

local function entomb(what)
  if redis.call('SISMEMBER', TOMBS, what) == 0 and redis.call('SCARD', TOMBS) >= tonumber(ARGV[7]) then
    return { -2, 0, 0, 0 }
  end
  redis.call('SADD', TOMBS, what)
  if redis.call('EXISTS', META) == 0 then redis.call('EXPIRE', TOMBS, 86400) end
  return { 0, 0, 0, 0 }
end

if scope ~= 'batch' then
  local row = string.match(name, '^(%d+)')
  local samples = redis.call('EXISTS', META) == 1 and row_header(row)
  if not samples then return entomb(name) end
  local stopped = 0
  gather()
  if scope == 'group' then
    stopped = stop_group(row, letter, reason)
  elseif tonumber(string.match(name, ':(%d+)$')) >= samples then
    return { -1, 0, 0, 0 }
  elseif stop(name, letter, reason) then
    stopped = 1
  end
  settle()
  mark_end()
  local from = scope == 'group' and stopping_from(row)
  return { 1, stopped, from and samples - from or 0, 0 }
end

if redis.call('EXISTS', META) == 0 then return entomb('*') end
if redis.call('HEXISTS', META, 'ended_at') == 1 then return { 1, 0, 0, 0 } end

local function left_over()
  local m = redis.call('HMGET', META, 'submitted', 'succeeded', 'failed', 'cancelled', 'expired')
  return (m[1] or 0) - (m[2] or 0) - (m[3] or 0) - (m[4] or 0) - (m[5] or 0)
end

local flag = letter == 'e' and '2' or '1'
local known_flag = redis.call('HGET', META, 'cancel')
if known_flag ~= flag then
  redis.call('HSET', META, 'cancel', flag, 'sealed', '1')
  redis.call('HDEL', META, 'swept')
elseif ARGV[6] == '0' then
  return { 1, 0, left_over(), 1 }
end

local stopped, room = 0, most
local swept = redis.call('HGET', META, 'swept') or '0'
gather()
if swept ~= 'all' then
  local members = {}
  if redis.call('HLEN', LIVE) <= most then
    members, swept = redis.call('HKEYS', LIVE), 'all'
  else
    local page = redis.call('HSCAN', LIVE, swept, 'COUNT', most)
    swept = page[1] == '0' and 'all' or page[1]
    for i = 1, #page[2], 2 do members[#members + 1] = page[2][i] end
  end
  for _, member in ipairs(members) do
    if stop(member, letter, reason) then stopped = stopped + 1 end
  end
  room = swept == 'all' and room - #members or 0
end
for _, entry in ipairs(room > 0 and redis.call('ZRANGE', LATER, 0, room - 1) or {}) do
  redis.call('ZREM', LATER, entry)
  local row, sample, environment = string.match(entry, '^(%d+):(%d+):(.*)$')
  if row then stopped = stopped + stop_range(row, environment, tonumber(sample), sample + 1, letter, reason, true) end
  room = room - 1
end
-- Return the part of a queue's first entry that there is room for; `put` takes the rest.
local function stop_first(row, environment, from, to, put)
  local upto = math.min(to, from + room)
  stopped = stopped + stop_range(row, environment, from, upto, letter, reason, true)
  room = room - (upto - from)
  if upto < to then put(upto) end
end
while room > 0 do
  local entry = redis.call('ZRANGE', PARKED, 0, 0)[1]
  if not entry then break end
  local environment, row, from, to = parse_parked(entry)
  redis.call('ZREM', PARKED, entry)
  if environment then
    count('parked|' .. environment, from - to)
    stop_first(row, environment, from, to, function(rest) park(environment, row, rest, to) end)
  end
end
while room > 0 do
  local entry = redis.call('LPOP', BACKLOG)
  if not entry then break end
  local row, from, to, environment = string.match(entry, '^(%d+):(%d+):(%d+):(.*)$')
  if row then
    stop_first(row, environment, tonumber(from), tonumber(to), function(rest)
      redis.call('LPUSH', BACKLOG, row .. ':' .. rest .. ':' .. to .. ':' .. environment)
    end)
  else
    room = room - 1
  end
end
settle()
mark_end()
local waiting = redis.call('LLEN', BACKLOG) + redis.call('ZCARD', LATER) + redis.call('ZCARD', PARKED)
local at_once = (waiting > 0 or swept ~= 'all') and 1 or 0
-- rollouts handed to a judge meanwhile may have escaped this pass; the next one starts anew
if at_once == 1 then redis.call('HSET', META, 'swept', swept) else redis.call('HDEL', META, 'swept') end
return { 1, stopped, left_over(), at_once }
