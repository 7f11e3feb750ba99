-- Give up an attempt and try again later, or hand it back unused.
-- ARGV: member, attempt, token, error line ('' = the attempt is not used up), delay in ms, its completed model calls
-- ('' = only those stored already)
-- Returns 1, or 0 if it was fenced off
local member, attempt, token, line, delay = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
even_when_full()
local value = redis.call('HGET', LIVE, member)
local live = value and parse_live(value)
if not live or live.state ~= 'r' or live.attempt ~= attempt or live.token ~= token then
  count('fenced', 1)
  return 0
end
leave_live(member, live)
count('queued', 1)
local owed = redis.call('HGET', META, 'owed|' .. member)
if owed then
  redis.call('HDEL', META, 'owed|' .. member)
  if owed == attempt then line = '' else drop_try(member, tonumber(owed)) end
end
if line ~= '' then add_try(member, line) end
-- a used-up attempt may be refunded, so calls that are sent are kept; another attempt drops them
if ARGV[6] ~= '' then
  redis.call('HSET', TRAJ, replay_of(member), ARGV[6])
elseif line ~= '' then
  redis.call('HDEL', TRAJ, replay_of(member))
end
redis.call('ZADD', LATER, now_ms() + delay, member .. ':' .. live.environment)
return 1
