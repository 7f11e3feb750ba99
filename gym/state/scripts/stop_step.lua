-- End a bounded part of a group that is being stopped.
-- ARGV: most rollouts to look at in this call
-- Returns {stopped, groups that are left, ended}
even_when_full()
local row = redis.call('HRANDFIELD', STOPS)
if not row then
  redis.call('HDEL', META, 'stops')
  return { 0, 0, 0 }
end
local from, letter, reason = string.match(redis.call('HGET', STOPS, row), '^(%d+)|(%a)|(.*)$')
from = tonumber(from)
local samples, environment = row_header(row)
local upto = math.min(samples or 0, from + tonumber(ARGV[1]))
local stopped = 0
gather()
if upto > from then stopped = stop_range(row, environment, from, upto, letter, reason, false) end
settle()
if upto < (samples or 0) then
  redis.call('HSET', STOPS, row, upto .. '|' .. letter .. '|' .. reason)
else
  redis.call('HDEL', STOPS, row)
end
local left = redis.call('HLEN', STOPS)
if left > 0 then redis.call('HSET', META, 'stops', left) else redis.call('HDEL', META, 'stops') end
return { stopped, left, mark_end() }
