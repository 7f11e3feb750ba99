-- A conversation is over and its verifier asked a judge: the rollout leaves its worker and waits for the verdict.
-- ARGV: member, attempt, token, judge, record so far, ask, trajectory
-- Returns 1, 2 where this very attempt has done so already, or 0 where it was fenced off
local member, attempt, token, judge = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
even_when_full()
local value = redis.call('HGET', LIVE, member)
local live = value and parse_live(value)
if not live or live.state ~= 'r' or live.attempt ~= attempt or live.token ~= token then
  if live and live.judge and judging_of(member).asker == token then return 2 end
  count('fenced', 1)
  return 0
end
leave_live(member, live)
count('judging', 1)
local now = now_ms()
local header = cjson.encode({ asker = token, over_at = now, began = 0, lost = 0 })
redis.call('HSET', JUDGING, member, header .. '\n' .. ARGV[5] .. '\n')
redis.call('HDEL', TRAJ, replay_of(member))
keep_ask(member, ARGV[6])
keep_trajectory(member, ARGV[7])
enter_judging(member, 'w', attempt, token, now, live.environment, judge, '')
return 1
