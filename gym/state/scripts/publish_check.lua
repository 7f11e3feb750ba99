-- Check a bounded part of a large request's task ids: repeats of rows of the batch are dropped. Checked ids
-- move to the end of the lists, so that after the last call they are in order again.
-- The last KEYS: stage, stage tasks, progress, publisher
-- ARGV: request, rows that were staged, most rows to look at, ms for which no other request may be published
-- Returns {verdict (checked | busy | missing | damaged | task_conflict), rows left, conflicting task id}
local STAGE, STAGE_TASKS, PROGRESS, PUBLISHER = unpack(KEYS, #KEYS - 3)
local request, total, most = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
if redis.call('EXISTS', META) == 0 then return { 'missing', 0, '' } end
local publisher = redis.call('GET', PUBLISHER)
if redis.call('HEXISTS', META, 'publishing') == 1 or publisher and publisher ~= request then return { 'busy', 0, '' } end
redis.call('SET', PUBLISHER, request, 'PX', ARGV[4])

local looked_at = tonumber(redis.call('HGET', PROGRESS, 'looked_at') or 0)
local repeated = tonumber(redis.call('HGET', PROGRESS, 'repeated') or 0)
local left = total - looked_at
if redis.call('LLEN', STAGE) ~= total - repeated or redis.call('LLEN', STAGE_TASKS) ~= total - repeated then
  redis.call('DEL', PUBLISHER)
  return { 'damaged', 0, '' }
end
if left == 0 then return { 'checked', 0, '' } end

local upto = math.min(left, most)
local rows, tasks = redis.call('LRANGE', STAGE, 0, upto - 1), redis.call('LRANGE', STAGE_TASKS, 0, upto - 1)
local ids = {}
for i, task in ipairs(tasks) do ids[i] = string.match(task, '^(%S+) ') or '' end
local kept_rows, kept_tasks, drop, samples = {}, {}, {}, 0
for i, value in ipairs(redis.call('HMGET', TASKS, unpack(ids))) do
  local row, number = string.match(rows[i], '^(%d+):0:(%d+):')
  if ids[i] ~= '' and value then
    if string.match(value, ' (%S+)$') ~= string.match(tasks[i], ' (%S+)$') then
      redis.call('DEL', PUBLISHER)
      return { 'task_conflict', 0, ids[i] }
    end
    drop[#drop + 1] = row
  else
    kept_rows[#kept_rows + 1], kept_tasks[#kept_tasks + 1] = rows[i], tasks[i]
    samples = samples + tonumber(number)
  end
end
redis.call('LTRIM', STAGE, upto, -1)
redis.call('LTRIM', STAGE_TASKS, upto, -1)
if #kept_rows > 0 then
  redis.call('RPUSH', STAGE, unpack(kept_rows))
  redis.call('RPUSH', STAGE_TASKS, unpack(kept_tasks))
end
if #drop > 0 then redis.call('HDEL', ROWS, unpack(drop)) end
redis.call('HINCRBY', PROGRESS, 'looked_at', upto)
redis.call('HINCRBY', PROGRESS, 'repeated', #drop)
redis.call('HINCRBY', PROGRESS, 'samples', samples)
for _, key in ipairs({ STAGE, STAGE_TASKS, PROGRESS }) do redis.call('EXPIRE', key, 3600) end
return { 'checked', left - upto, '' }
