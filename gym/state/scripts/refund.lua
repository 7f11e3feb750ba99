-- Refund an attempt that a failure has used up, or is about to.
-- ARGV: member, attempt, token
-- Returns 1 if that is done, or will be at the next retry; 0 if it has ended or no attempt is owed
local member, attempt, token = ARGV[1], tonumber(ARGV[2]), ARGV[3]
even_when_full()
if redis.call('HEXISTS', DONE, member) == 1 then return 0 end
local used = attempts_of(member)
local value = redis.call('HGET', LIVE, member)
if not value then
  if used ~= attempt then return 0 end
  drop_try(member, attempt)
  return 1
end
local live = parse_live(value)
if used ~= attempt and (live.judge or tonumber(live.attempt) ~= attempt or live.token ~= token) then return 0 end
redis.call('HSET', META, 'owed|' .. member, attempt)
return 1
