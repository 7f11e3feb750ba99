-- End a claimed rollout whose stored values cannot be read, as failed.
-- ARGV: member, attempt, token, error as JSON
-- Returns 1, or 0 if it was fenced off
even_when_full()
local member, attempt, token, error = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local value = redis.call('HGET', LIVE, member)
local live = value and parse_live(value)
if not live or (live.state ~= 'r' and live.state ~= 'j') or live.attempt ~= attempt or live.token ~= token then
  count('fenced', 1)
  return 0
end
leave_live(member, live)
end_here(member, 'f', 'error', attempt, token, live.environment, error)
mark_end()
return 1
