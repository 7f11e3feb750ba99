-- Requeue rollouts that lost their judge worker, or their job. `lost` counts the workers that died.
-- ARGV: now limit in ms for jobs in Celery (0 = leave them), cursor in LIVE (0 at first), most entries to look at,
--   then dead workers
-- Returns {rollouts of dead workers, jobs sent again, next cursor (0 = all were looked at)}
even_when_full()
local overdue = tonumber(ARGV[1])
local dead = {}
for i = 4, #ARGV do dead[ARGV[i]] = true end
local now = now_ms()
local waiting, resent = 0, 0
local cursor, entries, whole = some_live(ARGV[2], tonumber(ARGV[3]))
local load = {}
gather()
for i = 1, #entries, 2 do
  local member, live = entries[i], parse_live(entries[i + 1])
  local lost = live.state == 'j' and dead[string.match(live.worker, '/(.*)$')]
  if lost or live.state == 's' and overdue > 0 and live.since < overdue then
    if waiting + resent >= MOST_CHANGED then
      cursor, whole = '=' .. ARGV[2], false
      break
    end
    if lost then
      local header, lines = judging_of(member)
      header.lost = header.lost + 1
      redis.call('HSET', JUDGING, member, cjson.encode(header) .. '\n' .. lines)
      waiting = waiting + 1
    else
      resent = resent + 1
    end
    leave_judging(member, live)
    enter_judging(member, 'w', live.attempt, live.token, now, live.environment, live.judge, '')
    live.state, live.worker = 'w', live.judge .. '/'
  end
  if live.judge then
    local counter = live.judge .. (live.state == 'w' and '|waiting' or '|asked')
    load[counter] = (load[counter] or 0) + 1
    local parked = live.judge .. '|parked'
    if is_parked(live) then load[parked] = (load[parked] or 0) + 1 end
  end
end
settle()
-- the counters of judges are recounted, which repairs them; large batches cannot be counted at one moment
if whole then
  redis.call('DEL', JUDGES)
  for counter, number in pairs(load) do redis.call('HSET', JUDGES, counter, number) end
end
return { waiting, resent, cursor }
