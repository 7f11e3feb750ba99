-- Take back what lost its owner: rollouts of dead workers, and jobs that got lost in the broker.
-- ARGV: now limit in ms for jobs in Celery (0 = leave them), max attempts, then dead workers
-- Returns {requeued, failed, resent, ended}
even_when_full()
local overdue, max_attempts = tonumber(ARGV[1]), tonumber(ARGV[2])
local dead = {}
for i = 3, #ARGV do dead[ARGV[i]] = true end
local requeued, failed, resent = 0, 0, 0
local entries = redis.call('HGETALL', LIVE)
for i = 1, #entries, 2 do
  local member, live = entries[i], parse_live(entries[i + 1])
  if live.state == 'd' then
    if overdue > 0 and live.since < overdue then
      redis.call('HDEL', LIVE, member)
      count('dispatched', -1)
      redis.call('ZADD', LATER, 0, member .. ':' .. live.environment)
      resent = resent + 1
    end
  elseif dead[live.worker] then
    local message = 'worker ' .. live.worker .. ' stopped renewing its lease'
    local line = cjson.encode({ attempt = tonumber(live.attempt), worker = live.worker, kind = 'worker_lost', message = message })
    leave_live(member, live)
    if tonumber(live.attempt) >= max_attempts then
      local error = cjson.encode({ kind = 'worker_lost', stage = 'dispatch', message = message, retryable = true })
      add_try(member, line)
      end_here(member, 'f', 'error', live.attempt, live.token, live.environment, error)
      failed = failed + 1
    else
      count('queued', 1)
      redis.call('HDEL', TRAJ, replay_of(member))
      add_try(member, line)
      redis.call('ZADD', LATER, 0, member .. ':' .. live.environment)
      requeued = requeued + 1
    end
  end
end
return { requeued, failed, resent, mark_end() }
