-- Count the contents of a batch at one moment. Read-only.
-- ARGV: cursor in LIVE, most live entries to look at, most entries of the backlog to count
-- Returns {now, counters, retries, retries due, backlog entries, rollouts in backlog and parked (-1 = not counted), live, done,
--          next cursor, {d, r, judging} (empty = not all were looked at), {worker, rollouts, since, member, ...}}
local cursor, many, most = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local now = now_ms()
local counters = redis.call('HMGET', META, 'submitted', 'queued', 'dispatched', 'running', 'judging', 'succeeded',
  'failed', 'cancelled', 'expired', 'fence', 'cancel')
for i = 1, #counters do counters[i] = counters[i] or '0' end

local entries, rollouts = redis.call('LLEN', BACKLOG), -1
-- during a publication, and in stopping groups, some rollouts are in no queue
local countable = redis.call('HEXISTS', META, 'publishing') == 0 and redis.call('HEXISTS', META, 'stops') == 0
if countable and entries + redis.call('ZCARD', PARKED) <= most then
  rollouts = 0
  for _, entry in ipairs(redis.call('LRANGE', BACKLOG, 0, -1)) do
    local from, to = string.match(entry, '^%d+:(%d+):(%d+):')
    rollouts = rollouts + (tonumber(to) or 0) - (tonumber(from) or 0)
  end
  for _, entry in ipairs(redis.call('ZRANGE', PARKED, 0, -1)) do
    local _, _, from, to = parse_parked(entry)
    rollouts = rollouts + (to or 0) - (from or 0)
  end
end

local size = redis.call('HLEN', LIVE)
local values, states
if size <= many then
  cursor, values, states = '0', redis.call('HGETALL', LIVE), { 0, 0, 0 }
else
  local page = redis.call('HSCAN', LIVE, cursor, 'COUNT', many)
  cursor, values = page[1], page[2]
end
local begun = {} -- a suspect that waits to run alone does not run yet
if redis.call('EXISTS', SUSPECTS) == 1 then
  for i = 1, #values, 2 do begun[values[i]] = redis.call('HGET', SUSPECTS, values[i]) or nil end
end
local place = { d = 1, r = 2 }
local owners, order = {}, {}
for i = 1, #values, 2 do
  local live = parse_live(values[i + 1])
  local state = place[live.state] or 3
  if states then states[state] = states[state] + 1 end
  -- in judging the worker follows the judge, and is empty while it waits
  local worker = state ~= 1 and not is_parked(live) and string.match(live.worker, '[^/]*$') or ''
  if worker ~= '' then
    local owned = owners[worker]
    if not owned then
      owned = { n = 0, since = 0, member = values[i] }
      owners[worker] = owned
      order[#order + 1] = worker
    end
    owned.n = owned.n + 1
    local runs = state == 2 and (begun[values[i]] == nil or begun[values[i]] == live.token)
    if runs and (owned.since == 0 or live.since < owned.since) then owned.since, owned.member = live.since, values[i] end
  end
end
local owned = {}
for _, worker in ipairs(order) do
  local it = owners[worker]
  owned[#owned + 1] = worker
  owned[#owned + 1] = it.n
  owned[#owned + 1] = it.since
  owned[#owned + 1] = it.member
end
return { now, counters, redis.call('ZCARD', LATER), redis.call('ZCOUNT', LATER, '-inf', now), entries, rollouts, size,
  redis.call('HLEN', DONE), cursor, states or {}, owned }
