-- Give up a judging try and wait for another one, or hand it back unused, which also sets the judge's clock back
-- unless that continues.
-- ARGV: member, token (of the claim, or that it was sent with), error line ('' = unused), delay in ms,
--   judge to wait for ('' = as before), whether the clock continues (0 | 1)
-- Returns 1, or 0 if it was fenced off
even_when_full()
local member, token, line, delay, judge = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local value = redis.call('HGET', LIVE, member)
local live = value and parse_live(value)
if not live or (live.state ~= 'j' and live.state ~= 's') or live.token ~= token then
  count('fenced', 1)
  return 0
end
local header, lines = judging_of(member)
if line == '' then
  if live.state == 'j' and ARGV[6] ~= '1' then header.began = 0 end
else
  lines = lines .. line .. '\n'
end
redis.call('HSET', JUDGING, member, cjson.encode(header) .. '\n' .. lines)
leave_judging(member, live)
if judge == '' then judge = live.judge end
enter_judging(member, 'w', live.attempt, token, now_ms() + delay, live.environment, judge, '')
return 1
