-- Move rollouts from a judge's queue to Celery.
-- ARGV: judge, how many at most, then which: `due` (waited long enough), `over` (parked, and the judge's clock is over),
--   or a number: one parked rollout, chosen by that number, whose clock still runs
-- Returns {member, token, ...}
local judge, wanted, which = ARGV[1], tonumber(ARGV[2]), ARGV[3]
if redis.call('HGET', META, 'cancel') == '1' then return {} end
local now = now_ms()
local at = string.format('%013d', now)
local from, to, skip = '[' .. judge .. '|0', '[' .. judge .. '|' .. at .. '|~', 0
if which == 'over' then
  from, to = '[' .. judge .. '|p', '[' .. judge .. '|p' .. at .. '|~'
elseif which ~= 'due' then
  from, to = '(' .. judge .. '|p' .. at .. '|~', '(' .. judge .. '|q'
  skip = tonumber(which) % math.max(1, redis.call('ZLEXCOUNT', AWAITING, from, to))
end
local taken = {}
gather()
for _, entry in ipairs(redis.call('ZRANGEBYLEX', AWAITING, from, to, 'LIMIT', skip, wanted)) do
  local member, live = who_waits(entry)
  if member then
    local token = redis.call('HINCRBY', META, 'fence', 1)
    leave_judging(member, live)
    enter_judging(member, 's', live.attempt, token, now, live.environment, judge, '')
    taken[#taken + 1] = member
    taken[#taken + 1] = token
  end
end
settle()
return taken
