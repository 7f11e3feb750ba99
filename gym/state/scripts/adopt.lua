-- Queue rollouts without an owner again: not ended, not live, and in no queue. Called when the counts show a loss.
-- ARGV: row and sample to begin with, row behind the last, most rollouts to look at, most entries of the backlog and of
--   what is live
-- Returns {next row, next sample, members that were queued again, ...}, or -1 if the batch is too large to be searched
-- `search` in META is the position from which an unfinished search continues.
local ROW_COSTS = 8 -- in rollouts
local row, sample, last, most = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[5])
if redis.call('HEXISTS', META, 'publishing') == 1 then return -1 end -- it has rows that are in no queue yet
if redis.call('LLEN', BACKLOG) + redis.call('ZCARD', PARKED) > most or redis.call('HLEN', LIVE) > most then
  redis.call('HDEL', META, 'search')
  return -1
end
even_when_full()

-- the samples that this call looks at, by row
local parts, lined, room = {}, {}, tonumber(ARGV[4])
while row < last and room > 0 do
  local name = tostring(row)
  local samples, environment = row_header(name)
  if not samples or stopping_from(name) then samples = 0 end -- a stopping group needs no queue
  local upto = math.min(samples, sample + room)
  if upto > sample then
    parts[#parts + 1] = { row = name, from = sample, to = upto, environment = environment }
    lined[name] = { from = sample, to = upto }
  end
  room = room - ROW_COSTS - math.max(0, upto - sample)
  if upto < samples then sample = upto else row, sample = row + 1, 0 end
end

-- mark the samples among them that are in a queue
local function line(of, from, to)
  if not lined[of] then return end
  for number = math.max(from, lined[of].from), math.min(to, lined[of].to) - 1 do lined[of][number] = true end
end
for _, entry in ipairs(redis.call('LRANGE', BACKLOG, 0, -1)) do
  local of, from, to = string.match(entry, '^(%d+):(%d+):(%d+):')
  if of then line(of, tonumber(from), tonumber(to)) end
end
for _, entry in ipairs(redis.call('ZRANGE', PARKED, 0, -1)) do
  local _, of, from, to = parse_parked(entry)
  if of then line(of, from, to) end
end

-- counters that are too high are reduced by the rollouts found
local missing = { running = tonumber(redis.call('HGET', META, 'running')), judging = tonumber(redis.call('HGET', META, 'judging')),
                  dispatched = tonumber(redis.call('HGET', META, 'dispatched')) }
for _, value in ipairs(redis.call('HVALS', LIVE)) do
  local state = string.sub(value, 1, 1)
  local counter = state == 'd' and 'dispatched' or COUNTER[state]
  if missing[counter] then missing[counter] = missing[counter] - 1 end
end

local found = { row, sample }
local function adopt(member, environment)
  redis.call('ZADD', LATER, 0, member .. ':' .. environment)
  for _, counter in ipairs({ 'running', 'judging', 'dispatched' }) do
    if missing[counter] > 0 then
      missing[counter] = missing[counter] - 1
      count(counter, -1)
      if counter ~= 'dispatched' then count('queued', 1) end
      break
    end
  end
  found[#found + 1] = member
end

for _, part in ipairs(parts) do
  local members, places = {}, {}
  for number = part.from, part.to - 1 do
    local member = part.row .. ':' .. number
    members[#members + 1], places[#places + 1] = member, member .. ':' .. part.environment
  end
  local done, live = redis.call('HMGET', DONE, unpack(members)), redis.call('HMGET', LIVE, unpack(members))
  local later = redis.call('ZMSCORE', LATER, unpack(places))
  for i, member in ipairs(members) do
    if not done[i] and not live[i] and not later[i] and not lined[part.row][part.from + i - 1] then
      adopt(member, part.environment)
    end
  end
end
if row < last then
  redis.call('HSET', META, 'search', row .. ':' .. sample)
else
  redis.call('HDEL', META, 'search')
end
return found
