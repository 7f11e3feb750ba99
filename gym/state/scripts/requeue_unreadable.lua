-- Take back results of any outcome whose record or trajectory cannot be read, and run their rollouts again.
-- ARGV: member, log id of its result, environment, its score's part of the sums as JSON, whether the result was
--   usable (0 | 1), error line, ...
-- Returns how many were requeued, -1 if the batch is being cancelled; counts `again|OUTCOME` as requeue.lua does.
if redis.call('HGET', META, 'cancel') == '1' and redis.call('HEXISTS', META, 'ended_at') == 0 then return -1 end
local requeued = 0
gather()
for i = 1, #ARGV, 6 do
  local member, id, environment = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local letter, place = string.match(redis.call('HGET', DONE, member) or '', '^([sf])|.*|(%d+%-%d+)$')
  local row = string.match(member, '^(%d+):')
  local samples, known = row_header(row)
  if letter and place == id and samples then
    environment = known
    redis.call('XDEL', LOG, id)
    redis.call('HDEL', DONE, member)
    drop_trajectory(member)
    count(OUTCOME[letter], -1)
    count('again|' .. OUTCOME[letter], 1)
    count('queued', 1)
    count_in(STATS, environment .. '|ended', -1)
    for field, value in pairs(cjson.decode(ARGV[i + 3])) do
      redis.call('HINCRBYFLOAT', STATS, environment .. '|' .. field, -value)
    end
    if ARGV[i + 4] == '1' and redis.call('HEXISTS', GROUPS, row) == 1 then redis.call('HINCRBY', GROUPS, row, -1) end
    add_try(member, ARGV[i + 5])
    redis.call('ZADD', LATER, 0, member .. ':' .. environment)
    requeued = requeued + 1
  end
end
settle()
if requeued > 0 then
  redis.call('HDEL', META, 'ended_at')
  redis.call('HSET', META, 'cancel', '0')
end
return requeued
