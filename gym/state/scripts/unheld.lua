-- Take back rollouts that are assigned to a worker which does not hold them, as an infrastructure fault of the attempt.
-- ARGV: worker, max attempts, message, then member, attempt, token, ...
-- Returns {queued or waiting for a judge again, failed}
even_when_full()
local worker, max_attempts, message = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local requeued, failed = 0, 0

local function run_again(member, live)
  local begun = redis.call('HGET', SUSPECTS, member)
  leave_live(member, live)
  if not begun or begun == live.token then -- else it was waiting there to run alone
    add_try(member, cjson.encode({ attempt = tonumber(live.attempt), worker = worker, kind = 'internal',
      message = message, retryable = true }))
    redis.call('HDEL', TRAJ, replay_of(member))
    if faults_of(member) >= max_attempts then
      local error = cjson.encode({ kind = 'internal', stage = 'commit', message = message, retryable = true })
      end_here(member, 'f', 'error', live.attempt, live.token, live.environment, error)
      failed = failed + 1
      return
    end
  end
  count('queued', 1)
  redis.call('ZADD', LATER, 0, member .. ':' .. live.environment)
  requeued = requeued + 1
end

local function judge_again(member, live)
  local header, lines = judging_of(member)
  header.lost = header.lost + 1
  redis.call('HSET', JUDGING, member, cjson.encode(header) .. '\n' .. lines)
  leave_judging(member, live)
  enter_judging(member, 'w', live.attempt, live.token, now_ms(), live.environment, live.judge, '')
  requeued = requeued + 1
end

for i = 4, #ARGV, 3 do
  local member, attempt, token = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local value = redis.call('HGET', LIVE, member)
  local live = value and parse_live(value)
  if live and live.attempt == attempt and live.token == token then
    if live.state == 'r' and live.worker == worker then
      run_again(member, live)
    elseif live.state == 'j' and string.match(live.worker, '/(.*)$') == worker then
      judge_again(member, live)
    end
  end
end
mark_end()
return { requeued, failed }
