-- Give a rollout the attempt back that it used up last, where it still waits for the next one.
-- ARGV: member, attempt
-- Returns 1, or 0 where it runs again already, has ended, or had it given back before
local member, attempt = ARGV[1], tonumber(ARGV[2])
if redis.call('HEXISTS', LIVE, member) == 1 or redis.call('HEXISTS', DONE, member) == 1 then return 0 end
if attempts_of(member) ~= attempt then return 0 end
local rest = string.match(redis.call('HGET', TRIES, member), '^(.*\n)[^\n]+\n$')
if rest then
  redis.call('HSET', TRIES, member, rest)
else
  redis.call('HDEL', TRIES, member)
end
return 1
