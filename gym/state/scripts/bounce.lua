-- Take back jobs that a worker received and does not start; another one gets them at once, as the same attempt.
-- ARGV: member, attempt, ...
-- Returns how many were taken back
even_when_full()
local back = 0
for i = 1, #ARGV, 2 do
  local member, attempt = ARGV[i], ARGV[i + 1]
  local value = redis.call('HGET', LIVE, member)
  local live = value and parse_live(value)
  if live and live.state == 'd' and live.attempt == attempt then
    redis.call('HDEL', LIVE, member)
    count('dispatched', -1)
    redis.call('ZADD', LATER, 0, member .. ':' .. live.environment)
    back = back + 1
  end
end
return back
