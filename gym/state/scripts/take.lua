-- Move up to ARGV[1] rollouts from the backlog to Celery, retries that are due first.
-- Returns {environment, member, attempt, ...}
local wanted = tonumber(ARGV[1])
local now = now_ms()
local taken = {}
local moved = 0

if redis.call('HGET', META, 'cancel') ~= '0' then return taken end
redis.call('HINCRBY', META, 'dispatched', 0) -- a full Redis refuses it here, before anything has moved
local any_done = redis.call('EXISTS', DONE) == 1
local any_tries = redis.call('EXISTS', TRIES) == 1
local any_tombs = redis.call('EXISTS', TOMBS) == 1

local function take(member, environment)
  if any_done and redis.call('HEXISTS', DONE, member) == 1 then return end
  if redis.call('HEXISTS', LIVE, member) == 1 then return end
  if any_tombs then
    local row = string.match(member, '^(%d+):')
    if redis.call('SISMEMBER', TOMBS, row) == 1 or redis.call('SISMEMBER', TOMBS, member) == 1 then
      if stop(member, 'c', 'cancelled') then any_done = true end
      return
    end
  end
  local attempt = 1
  if any_tries then attempt = attempts_of(member) + 1 end
  redis.call('HSET', LIVE, member, 'd|' .. attempt .. '|0|' .. now .. '|' .. environment)
  taken[#taken + 1] = environment
  taken[#taken + 1] = member
  taken[#taken + 1] = attempt
  moved = moved + 1
end

for _, entry in ipairs(redis.call('ZRANGEBYSCORE', LATER, '-inf', now, 'LIMIT', 0, wanted)) do
  redis.call('ZREM', LATER, entry)
  local member, environment = string.match(entry, '^(%d+:%d+):(.*)$')
  take(member, environment)
end

while moved < wanted do
  local entry = redis.call('LPOP', BACKLOG)
  if not entry then break end
  local row, from, to, environment = string.match(entry, '^(%d+):(%d+):(%d+):(.*)$')
  to = tonumber(to)
  local sample = tonumber(from)
  while sample < to and moved < wanted do
    take(row .. ':' .. sample, environment)
    sample = sample + 1
  end
  if sample < to then
    redis.call('LPUSH', BACKLOG, row .. ':' .. sample .. ':' .. to .. ':' .. environment)
  end
end
count('dispatched', moved)
if any_tombs then mark_end() end
return taken
