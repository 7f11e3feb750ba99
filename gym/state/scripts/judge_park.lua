-- Park rollouts that wait for a failing judge; the clock of those that it was not asked about yet starts now.
-- ARGV: judge, its clock in ms, how many at most
-- Returns how many were looked at
even_when_full()
local judge, clock, most = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local now = now_ms()
local entries = redis.call('ZRANGEBYLEX', AWAITING, '[' .. judge .. '|0', '(' .. judge .. '|:', 'LIMIT', 0, most)
gather()
for _, entry in ipairs(entries) do
  local member, live = who_waits(entry)
  if member then
    local header, lines = judging_of(member)
    if header.began == 0 then
      header.began = now
      redis.call('HSET', JUDGING, member, cjson.encode(header) .. '\n' .. lines)
    end
    leave_judging(member, live)
    enter_judging(member, 'w', live.attempt, live.token, header.began + clock, live.environment, judge, 'parked')
  end
end
settle()
return #entries
