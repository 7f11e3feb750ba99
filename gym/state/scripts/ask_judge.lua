-- Hand rollouts over to a judge: their conversations are over, they leave their worker and wait for verdicts.
-- ARGV: for each: member, attempt, token, judge, record so far, ask, trajectory
-- Returns for each: 1, 2 if this very attempt has done so already, or 0 if it was fenced off
local now = now_ms()

local function leave_to_judge(member, attempt, token, judge, record, ask, trajectory)
  local value = redis.call('HGET', LIVE, member)
  local live = value and parse_live(value)
  if not live or live.state ~= 'r' or live.attempt ~= attempt or live.token ~= token then
    if live and live.judge and judging_of(member).asker == token then return 2 end
    count('fenced', 1)
    return 0
  end
  leave_live(member, live)
  count('judging', 1)
  local header = cjson.encode({ asker = token, over_at = now, began = 0, lost = 0 })
  redis.call('HSET', JUDGING, member, header .. '\n' .. record .. '\n')
  redis.call('HDEL', TRAJ, replay_of(member))
  keep_ask(member, ask)
  keep_trajectory(member, trajectory)
  enter_judging(member, 'w', attempt, token, now, live.environment, judge, '')
  return 1
end

local answers = {}
even_when_full()
gather()
for i = 1, #ARGV, 7 do answers[#answers + 1] = leave_to_judge(unpack(ARGV, i, i + 6)) end
settle()
return answers
