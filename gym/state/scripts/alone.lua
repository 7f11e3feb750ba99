-- Start a claimed suspect (poison rollout), on a worker that runs nothing else.
-- ARGV: member, attempt, token
-- Returns 1, or 0 if the claim is void
local member, attempt, token = ARGV[1], ARGV[2], ARGV[3]
even_when_full()
local value = redis.call('HGET', LIVE, member)
local live = value and parse_live(value)
if not live or live.state ~= 'r' or live.attempt ~= attempt or live.token ~= token then return 0 end
redis.call('HSET', SUSPECTS, member, token)
redis.call('HSET', LIVE, member,
  live.state .. '|' .. attempt .. '|' .. token .. '|' .. now_ms() .. '|' .. live.environment .. '|' .. live.worker)
return 1
