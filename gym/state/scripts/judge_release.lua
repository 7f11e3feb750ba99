-- Release all rollouts that wait for a judge: parked ones, and those that wait for their next try.
-- ARGV: judge, how many at most
-- Returns how many were looked at
even_when_full()
local judge, most = ARGV[1], tonumber(ARGV[2])
local now = now_ms()
-- parked ones come last: the dispatcher calls again while any is left
local later = '(' .. judge .. '|' .. string.format('%013d', now) .. '|~'
local entries = redis.call('ZRANGEBYLEX', AWAITING, later, '(' .. judge .. '|:', 'LIMIT', 0, most)
if #entries == 0 then
  entries = redis.call('ZRANGEBYLEX', AWAITING, '[' .. judge .. '|p', '(' .. judge .. '|q', 'LIMIT', 0, most)
end
gather()
for _, entry in ipairs(entries) do
  local member, live = who_waits(entry)
  if member then
    leave_judging(member, live)
    enter_judging(member, 'w', live.attempt, live.token, now, live.environment, judge, '')
  end
end
settle()
return #entries
