-- Publish staged rows, all or none, and create the batch in mode `create`. Rows of a large request are visible and
-- counted from here on, and move to the backlog in steps (publish_step.lua): `publishing` in META is the request.
-- The last KEYS: stage, stage tasks, progress, publisher, stage done
-- ARGV: mode (create | append), seal, spec, digest, run, priority, weight, policy, request, rows that were staged, their
--   samples, whether the request is large (0 | 1)
-- Returns {verdict, accepted, repeated, submitted, first conflicting task id}; busy while another request is being published
local STAGE, STAGE_TASKS, PROGRESS, PUBLISHER, STAGE_DONE = unpack(KEYS, #KEYS - 4)
local mode, seal, request, large = ARGV[1], ARGV[2], ARGV[9], ARGV[12] == '1'
local LARGE_TTL_S = 30 * 86400

local earlier = redis.call('GET', STAGE_DONE)
if earlier then return cjson.decode(earlier) end

local exists = redis.call('EXISTS', META) == 1
if mode == 'create' and exists then
  local same = redis.call('HGET', META, 'digest') == ARGV[4]
  return { same and 'exists' or 'conflict', 0, 0, tonumber(redis.call('HGET', META, 'submitted')), '' }
end
if mode == 'append' and not exists then return { 'missing', 0, 0, 0, '' } end

local publisher = redis.call('GET', PUBLISHER)
if redis.call('HEXISTS', META, 'publishing') == 1 or publisher and publisher ~= request then return { 'busy', 0, 0, 0, '' } end

local total = redis.call('LLEN', STAGE)
local progress = redis.call('HMGET', PROGRESS, 'looked_at', 'repeated', 'samples')
local repeated, submitted = tonumber(progress[2] or 0), tonumber(progress[3] or ARGV[11])
local is_whole = total + repeated == tonumber(ARGV[10]) and total == redis.call('LLEN', STAGE_TASKS)
if not is_whole or progress[1] and progress[1] ~= ARGV[10] then return { 'damaged', 0, 0, 0, '' } end
local entries, tasks, ids, at = {}, {}, {}, {}
local repeats = {}
if not large then
  entries, tasks = redis.call('LRANGE', STAGE, 0, -1), redis.call('LRANGE', STAGE_TASKS, 0, -1)
  submitted = 0
  for i, task in ipairs(tasks) do
    local id = string.match(task, '^(%S+) ')
    if id then
      ids[#ids + 1] = id
      at[#at + 1] = i
    end
  end
end
if #ids > 0 then
  for i, value in ipairs(redis.call('HMGET', TASKS, unpack(ids))) do
    if value then
      if string.match(value, ' (%S+)$') ~= string.match(tasks[at[i]], ' (%S+)$') then
        return { 'task_conflict', 0, 0, 0, ids[i] }
      end
      repeats[at[i]] = true
      repeated = repeated + 1
    end
  end
end
local accepted = tonumber(ARGV[10]) - repeated

if mode == 'append' and accepted > 0 then
  local flags = redis.call('HMGET', META, 'sealed', 'cancel')
  if flags[2] == '1' then return { 'cancelled', 0, 0, 0, '' } end
  if flags[1] == '1' then return { 'sealed', 0, 0, 0, '' } end
end

local now = now_ms()
if mode == 'create' then
  redis.call('HSET', META, 'spec', ARGV[3], 'digest', ARGV[4], 'run', ARGV[5], 'priority', ARGV[6], 'weight', ARGV[7],
    'policy', ARGV[8], 'created_at', now, 'submitted', 0, 'queued', 0, 'running', 0, 'judging', 0, 'succeeded', 0,
    'failed', 0, 'cancelled', 0, 'expired', 0, 'dispatched', 0, 'sealed', 0, 'cancel', 0)
end

if large then
  redis.call('HSET', META, 'publishing', request)
  redis.call('EXPIRE', STAGE, LARGE_TTL_S)
  redis.call('EXPIRE', STAGE_TASKS, LARGE_TTL_S)
else
  local push, set, drop = {}, {}, {}
  for i, entry in ipairs(entries) do
    local row, samples = string.match(entry, '^(%d+):0:(%d+):')
    if repeats[i] then
      drop[#drop + 1] = row
    else
      push[#push + 1] = entry
      submitted = submitted + tonumber(samples)
      local id, digest = string.match(tasks[i], '^(%S+) (%S+)$')
      if id then
        set[#set + 1] = id
        set[#set + 1] = row .. ' ' .. digest
      end
    end
  end
  if #push > 0 then redis.call('RPUSH', BACKLOG, unpack(push)) end
  if #set > 0 then redis.call('HSET', TASKS, unpack(set)) end
  if #drop > 0 then redis.call('HDEL', ROWS, unpack(drop)) end
  redis.call('DEL', STAGE, STAGE_TASKS)
end
redis.call('DEL', PROGRESS, PUBLISHER)
redis.call('HDEL', STAGING, request)
count('submitted', submitted)
count('queued', submitted)
if seal == '1' then redis.call('HSET', META, 'sealed', '1') end
if redis.call('SISMEMBER', TOMBS, '*') == 1 then redis.call('HSET', META, 'cancel', '1', 'sealed', '1') end
redis.call('PERSIST', TOMBS)
mark_end()
local answer = { mode == 'create' and 'created' or 'appended', accepted, repeated,
  tonumber(redis.call('HGET', META, 'submitted')), '' }
redis.call('SET', STAGE_DONE, cjson.encode(answer), 'EX', 600)
return answer
