-- Take failed and expired results back and run them again.
-- ARGV: member, attempt, environment, tries (JSON lines of all its attempts), ...
-- Returns how many were requeued, -1 if the batch is being cancelled
-- `again|OUTCOME` in META counts outcomes that were taken back; with the ledger they give the number of ends.
if redis.call('HGET', META, 'cancel') == '1' and redis.call('HEXISTS', META, 'ended_at') == 0 then return -1 end
local requeued = 0
gather()
for i = 1, #ARGV, 4 do
  local member, attempt, environment, lines = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local done = redis.call('HGET', DONE, member)
  local letter, number, id
  if done then letter, number, id = string.match(done, '^(%a)|(%d+)|%d+|(.*)$') end
  if (letter == 'f' or letter == 'e') and number == attempt then
    redis.call('XDEL', LOG, id)
    redis.call('HDEL', DONE, member)
    drop_trajectory(member)
    count(OUTCOME[letter], -1)
    count('again|' .. OUTCOME[letter], 1)
    count('queued', 1)
    count_in(STATS, environment .. '|ended', -1)
    if lines ~= '' then redis.call('HSET', TRIES, member, lines) end
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
