-- Acknowledge results of a consumer: they are not handed to it again.
-- The last five KEYS: feeds, and the four of the consumer
-- ARGV: consumer, lease (empty = any lease), whether to look only (0 | 1), then distinct members; without any,
--   all of the lease
-- Returns {missing} | {partial, row, its rollouts that were named, its rollouts} | {acknowledged, results}
local consumer, lease = ARGV[1], ARGV[2]
redis.call('HDEL', FEED, '') -- as in lease.lua
if redis.call('EXISTS', META) == 0 then return { 'missing' } end
local known = redis.call('HMGET', FEED, 'unit', 'cursor')
if not known[1] then return { 'acknowledged', 0 } end

local given
if lease ~= '' then
  given = {}
  for id, results in string.gmatch(redis.call('HGET', LEASES, lease) or '', '(%d+%-%d+)%*?(%d*)') do
    given[id] = tonumber(results) or 1
  end
end

local acknowledged = 0
local function strike(id, results)
  if id and (not given or given[id]) and redis.call('ZREM', OUT, id) == 1 then acknowledged = acknowledged + results end
end

if #ARGV == 3 then
  for id, results in pairs(given or {}) do strike(id, results) end
  redis.call('HDEL', LEASES, lease)
  redis.call('ZREM', ENDS, lease)
elseif known[1] == 'rollout' then
  for i = 4, ARGV[3] == '1' and 3 or #ARGV do
    strike(string.match(redis.call('HGET', DONE, ARGV[i]) or '', '|([%d-]+)$'), 1)
  end
else
  local rows, named = {}, {}
  for i = 4, #ARGV do
    local row = string.sub(ARGV[i], 1, string.find(ARGV[i], ':', 1, true) - 1)
    if not named[row] then rows[#rows + 1] = row end
    named[row] = (named[row] or 0) + 1
  end
  for _, row in ipairs(rows) do
    local samples = row_header(row) or 0
    if named[row] < samples then return { 'partial', row, named[row], samples } end
  end
  for _, row in ipairs(ARGV[3] == '1' and {} or rows) do
    local ids, last = group_results(row)
    strike(last, ids and #ids or 0)
  end
end
close(consumer, known[2])
return { 'acknowledged', acknowledged }
