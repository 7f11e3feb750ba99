-- Take back rollouts of dead workers, and jobs that got lost in the broker.
-- ARGV: now limit in ms for jobs in Celery (0 = leave them), max attempts, deaths that make a suspect, cursor in
--   LIVE (0 at first), most entries to look at, then dead workers
-- Returns {requeued, failed, resent, ended, next cursor (0 = all were looked at)}
-- A suspect (poison rollout) runs alone. Only a death there makes it fail: in company another may be to blame.
even_when_full()
local overdue, max_attempts, suspect_after = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local dead = {}
for i = 6, #ARGV do dead[ARGV[i]] = true end
local requeued, failed, resent = 0, 0, 0

local function wait_again(member, live)
  count('queued', 1)
  redis.call('ZADD', LATER, 0, member .. ':' .. live.environment)
  requeued = requeued + 1
end

local function died(member, live)
  local begun = redis.call('HGET', SUSPECTS, member)
  leave_live(member, live)
  if begun and begun ~= live.token then return wait_again(member, live) end -- it was waiting there to run alone
  local message = 'worker ' .. live.worker .. ' stopped renewing its lease' .. (begun and '; it ran nothing else' or '')
  add_try(member, cjson.encode({ attempt = tonumber(live.attempt), worker = live.worker, kind = 'worker_lost',
    message = message, retryable = true }))
  redis.call('HDEL', TRAJ, replay_of(member))
  local infrastructure, deaths = faults_of(member)
  if infrastructure >= max_attempts and (begun or deaths < suspect_after) then
    local error = cjson.encode({ kind = 'worker_lost', stage = 'dispatch', message = message, retryable = true })
    end_here(member, 'f', 'error', live.attempt, live.token, live.environment, error)
    failed = failed + 1
    return
  end
  if not begun and deaths >= suspect_after then redis.call('HSET', SUSPECTS, member, '') end
  wait_again(member, live)
end

local cursor, entries = some_live(ARGV[4], tonumber(ARGV[5]))
gather()
for i = 1, #entries, 2 do
  local member, live = entries[i], parse_live(entries[i + 1])
  if requeued + failed + resent >= MOST_CHANGED then
    cursor = '=' .. ARGV[4]
    break
  end
  if live.state == 'd' then
    if overdue > 0 and live.since < overdue then
      redis.call('HDEL', LIVE, member)
      count('dispatched', -1)
      redis.call('ZADD', LATER, 0, member .. ':' .. live.environment)
      resent = resent + 1
    end
  elseif dead[live.worker] then
    died(member, live)
  end
end
settle()
return { requeued, failed, resent, mark_end(), cursor }
