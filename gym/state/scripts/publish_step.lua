-- Move a bounded part of the rows of a published request into the backlog.
-- The last KEYS: stage, stage tasks
-- ARGV: request, most rows
-- Returns rows left
local STAGE, STAGE_TASKS = KEYS[#KEYS - 1], KEYS[#KEYS]
local request, most = ARGV[1], tonumber(ARGV[2])
even_when_full()
if redis.call('HGET', META, 'publishing') ~= request then return 0 end
local rows, tasks = redis.call('LRANGE', STAGE, 0, most - 1), redis.call('LRANGE', STAGE_TASKS, 0, most - 1)
local set = {}
for i, task in ipairs(tasks) do
  local id, digest = string.match(task, '^(%S+) (%S+)$')
  if id then
    set[#set + 1] = id
    set[#set + 1] = string.match(rows[i], '^%d+') .. ' ' .. digest
  end
end
if #rows > 0 then redis.call('RPUSH', BACKLOG, unpack(rows)) end
if #set > 0 then redis.call('HSET', TASKS, unpack(set)) end
redis.call('LTRIM', STAGE, most, -1)
redis.call('LTRIM', STAGE_TASKS, most, -1)
local left = redis.call('LLEN', STAGE)
if left == 0 then
  redis.call('DEL', STAGE, STAGE_TASKS)
  redis.call('HDEL', META, 'publishing')
end
return left
