-- Queue stored trajectories for judging again; each keeps its result until there is a new verdict.
-- ARGV: member, log id of its result, environment, judge, header as JSON, record, ...
-- Returns how many are judged again, -1 if the batch is being cancelled
if redis.call('HGET', META, 'cancel') == '1' and redis.call('HEXISTS', META, 'ended_at') == 0 then return -1 end
local now = now_ms()
local judged, sums = 0, {}
gather()
for i = 1, #ARGV, 6 do
  local member, environment = ARGV[i], ARGV[i + 2]
  local done = redis.call('HGET', DONE, member)
  local letter, attempt, id
  if done then letter, attempt, id = string.match(done, '^(%a)|(%d+)|%d+|(.*)$') end
  if (letter == 's' or letter == 'f') and id == ARGV[i + 1] and redis.call('HEXISTS', ASKS, member) == 1 then
    redis.call('XDEL', LOG, id)
    redis.call('HDEL', DONE, member)
    count(OUTCOME[letter], -1)
    count('again|' .. OUTCOME[letter], 1) -- as in requeue.lua
    count('judging', 1)
    count_in(STATS, environment .. '|ended', -1)
    local header = cjson.decode(ARGV[i + 4])
    for field, value in pairs(header.old.sums) do
      sums[environment .. '|' .. field] = (sums[environment .. '|' .. field] or 0) - value
    end
    header.over_at = now
    redis.call('HSET', JUDGING, member, cjson.encode(header) .. '\n' .. ARGV[i + 5] .. '\n')
    enter_judging(member, 'w', attempt, redis.call('HINCRBY', META, 'fence', 1), now, environment, ARGV[i + 3], '')
    judged = judged + 1
  end
end
settle()
for field, by in pairs(sums) do redis.call('HINCRBYFLOAT', STATS, field, by) end
if judged > 0 then
  redis.call('HDEL', META, 'ended_at')
  redis.call('HSET', META, 'cancel', '0')
end
return judged
