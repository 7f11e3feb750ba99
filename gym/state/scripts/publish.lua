-- Publish staged rows, creating the batch where asked: all of them or none.
-- The last KEYS: stage, stage tasks, stage done
-- ARGV: mode (create | append), seal, spec, digest, run, priority, weight, policy, request, rows that were staged
-- Returns {verdict, accepted, repeated, submitted, first conflicting task id}
local STAGE, STAGE_TASKS, STAGE_DONE = KEYS[#KEYS - 2], KEYS[#KEYS - 1], KEYS[#KEYS]
local mode, seal = ARGV[1], ARGV[2]
local CHUNK = 1000

local earlier = redis.call('GET', STAGE_DONE)
if earlier then return cjson.decode(earlier) end

local exists = redis.call('EXISTS', META) == 1
if mode == 'create' and exists then
  local same = redis.call('HGET', META, 'digest') == ARGV[4]
  return { same and 'exists' or 'conflict', 0, 0, tonumber(redis.call('HGET', META, 'submitted')), '' }
end
if mode == 'append' and not exists then return { 'missing', 0, 0, 0, '' } end

local total = redis.call('LLEN', STAGE)
if total ~= tonumber(ARGV[10]) or total ~= redis.call('LLEN', STAGE_TASKS) then return { 'damaged', 0, 0, 0, '' } end
local repeats = {}
local repeated = 0
for from = 0, total - 1, CHUNK do
  local tasks = redis.call('LRANGE', STAGE_TASKS, from, from + CHUNK - 1)
  local ids, at, digests = {}, {}, {}
  for i, task in ipairs(tasks) do
    local id, digest = string.match(task, '^(%S+) (%S+)$')
    if id then
      ids[#ids + 1] = id
      at[#at + 1] = from + i
      digests[#digests + 1] = digest
    end
  end
  if #ids > 0 then
    local known = redis.call('HMGET', TASKS, unpack(ids))
    for i, value in ipairs(known) do
      if value then
        if string.match(value, ' (%S+)$') ~= digests[i] then return { 'task_conflict', 0, 0, 0, ids[i] } end
        repeats[at[i]] = true
        repeated = repeated + 1
      end
    end
  end
end

if mode == 'append' and total > repeated then
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

local submitted = 0
for from = 0, total - 1, CHUNK do
  local entries = redis.call('LRANGE', STAGE, from, from + CHUNK - 1)
  local tasks = redis.call('LRANGE', STAGE_TASKS, from, from + CHUNK - 1)
  local push, set, drop = {}, {}, {}
  for i, entry in ipairs(entries) do
    local row, samples = string.match(entry, '^(%d+):0:(%d+):')
    if repeats[from + i] then
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
end
redis.call('DEL', STAGE, STAGE_TASKS)
redis.call('HDEL', STAGING, ARGV[9])
count('submitted', submitted)
count('queued', submitted)
if seal == '1' then redis.call('HSET', META, 'sealed', '1') end
if redis.call('SISMEMBER', TOMBS, '*') == 1 then redis.call('HSET', META, 'cancel', '1', 'sealed', '1') end
redis.call('PERSIST', TOMBS)
mark_end()
local answer = { mode == 'create' and 'created' or 'appended', total - repeated, repeated,
  tonumber(redis.call('HGET', META, 'submitted')), '' }
redis.call('SET', STAGE_DONE, cjson.encode(answer), 'EX', 600)
return answer
