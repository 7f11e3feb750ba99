-- Lease unacknowledged results to a consumer: first those whose lease ended, then new ones.
-- The last five KEYS: feeds, and the four of the consumer
-- ARGV: consumer, unit (rollout | group), lease, its length in ms, most units, most results (one unit may exceed it),
--       most entries of the log to look at, units of this lease that the caller has
-- Returns {missing} | {unit, the consumer's own} | {leased, run, end in ms, more, done, its cursor, {log id, fields}, ...};
-- for a large group it is {log ids}, whose fields are to be read separately
local LARGE_GROUP = 100
local consumer, unit, lease = ARGV[1], ARGV[2], ARGV[3]
local most, most_results, most_entries, have = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])

redis.call('HDEL', FEED, '') -- a full Redis lets a script continue that has written, and results must get out of it
local run = redis.call('HGET', META, 'run')
if not run then return { 'missing' } end
local known = redis.call('HMGET', FEED, 'unit', 'cursor')
if known[1] and known[1] ~= unit then return { 'unit', known[1] } end
local now = now_ms()
local expires = now + ARGV[4]
local cursor = known[2] or '0-0'
local answer = { 'leased', run, tostring(expires), 0, 0, '' }
local units, results = {}, 0

local function give(id, many, entries)
  for _, entry in ipairs(entries) do answer[#answer + 1] = entry end
  redis.call('ZADD', OUT, expires, id)
  units[#units + 1] = many == 1 and id or id .. '*' .. many
  results = results + many
end

local function entry_of(id) return redis.call('XRANGE', LOG, id, id)[1] end

-- Return whether this entry needs another look at a group, and this call has used up its looks.
local completed = {}
local function too_much(entry)
  return unit == 'group' and lookups >= LOOKUPS and not completed[string.match(entry[2][2], '^(%d+):')]
end

-- Lease the unit of this entry, if it is still valid.
local function hand_out(entry)
  local row = entry and entry[2][1] == 'm' and string.match(entry[2][2], '^(%d+):%d+$')
  if not row then return false end -- gone, or not a result
  local id = entry[1]
  if unit == 'rollout' then
    give(id, 1, { entry })
    return true
  end
  if not completed[row] then
    local ids, last = group_results(row)
    completed[row] = { ids = ids, last = last or '' }
  end
  if completed[row].last ~= id then return false end
  local entries = {}
  local ids = completed[row].ids
  if #ids > LARGE_GROUP then
    entries[1] = { table.concat(ids, ' ') }
  else
    for number, each in ipairs(ids) do entries[number] = each == id and entry or entry_of(each) end
  end
  give(id, #ids, entries)
  return true
end

-- Units of a named lease that the caller has not seen are returned again: an answer was lost, or it wants more time.
local kept, unseen, rest = {}, {}, {}
local ends = redis.call('ZSCORE', ENDS, lease)
if ends and (have > 0 or tonumber(ends) > now) then
  for given in string.gmatch(redis.call('HGET', LEASES, lease) or '', '%S+') do
    if #kept < have then kept[#kept + 1] = given else unseen[#unseen + 1] = given end
  end
end
local looked_at = 0
local function enough()
  return looked_at >= most_entries or results >= most_results or lookups >= LOOKUPS
end
for _, given in ipairs(unseen) do
  local id = string.match(given, '^[%d-]+')
  looked_at = looked_at + 1
  if enough() then
    rest[#rest + 1] = given -- for the next call
  elseif redis.call('ZSCORE', OUT, id) and not hand_out(entry_of(id)) then redis.call('ZREM', OUT, id) end
end
if #rest > 0 or #units > 0 and have > 0 then answer[4] = 1 end

if #units == 0 and #rest == 0 then
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', OUT, '-inf', now, 'LIMIT', 0, most)) do
    if enough() then
      answer[4] = 1
      break
    end
    looked_at = looked_at + 1
    if not hand_out(entry_of(id)) then redis.call('ZREM', OUT, id) end
  end
  while answer[4] == 0 and #units < most do
    local entries = redis.call('XRANGE', LOG, '(' .. cursor, '+', 'COUNT', unit == 'group' and 100 or math.min(100, most - #units))
    if #entries == 0 then break end
    for _, entry in ipairs(entries) do
      if looked_at >= most_entries or results >= most_results or too_much(entry) then answer[4] = 1 end
      if answer[4] == 1 or #units >= most then break end
      cursor = entry[1]
      looked_at = looked_at + 1
      hand_out(entry)
    end
  end
end

redis.call('HSET', FEED, 'unit', unit, 'cursor', cursor)
for _, given in ipairs(units) do kept[#kept + 1] = given end
for _, given in ipairs(rest) do kept[#kept + 1] = given end
if #kept > 0 then
  redis.call('HSET', LEASES, lease, table.concat(kept, ' '))
  redis.call('ZADD', ENDS, expires, lease)
elseif ends then
  redis.call('HDEL', LEASES, lease)
  redis.call('ZREM', ENDS, lease)
end
for _, old in ipairs(redis.call('ZRANGEBYSCORE', ENDS, '-inf', now - LATE_ACK_MS, 'LIMIT', 0, 10)) do
  redis.call('ZREM', ENDS, old)
  redis.call('HDEL', LEASES, old)
end
answer[5] = close(consumer, cursor)
answer[6] = cursor
return answer
