-- Raise an alarm that does not stand yet, or clear one that does; also in a full Redis.
-- KEYS: standing, log. ARGV: raised | cleared, name of the alarm, the alarm as JSON, most entries of the log
-- Returns whether anything changed
redis.call('XTRIM', KEYS[2], 'MAXLEN', ARGV[4] - 1)
local changed
if ARGV[1] == 'raised' then
  changed = redis.call('HSETNX', KEYS[1], ARGV[2], ARGV[3])
else
  changed = redis.call('HDEL', KEYS[1], ARGV[2])
end
if changed == 1 then redis.call('XADD', KEYS[2], '*', 'event', ARGV[1], 'alarm', ARGV[3]) end
return changed
