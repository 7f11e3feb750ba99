-- End what has not ended.
-- ARGV: scope (batch | group | rollout), row or member, outcome letter, reason, most entries of the backlog in this call
-- Returns {known, stopped, left}: known 0 leaves a tombstone, left > 0 asks for another call
even_when_full()
local scope, name, letter, reason, most = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])

local function entomb(what)
  redis.call('SADD', TOMBS, what)
  if redis.call('EXISTS', META) == 0 then redis.call('EXPIRE', TOMBS, 86400) end
  return { 0, 0, 0 }
end

if scope ~= 'batch' then
  local row = string.match(name, '^(%d+)')
  local samples = redis.call('EXISTS', META) == 1 and row_header(row)
  if not samples then return entomb(name) end
  local stopped = 0
  if scope == 'group' then
    stopped = stop_group(row, letter, reason)
  elseif tonumber(string.match(name, ':(%d+)$')) >= samples then
    return { -1, 0, 0 }
  elseif stop(name, letter, reason) then
    stopped = 1
  end
  mark_end()
  return { 1, stopped, 0 }
end

if redis.call('EXISTS', META) == 0 then return entomb('*') end
if redis.call('HEXISTS', META, 'ended_at') == 1 then return { 1, 0, 0 } end
redis.call('HSET', META, 'cancel', letter == 'e' and '2' or '1', 'sealed', '1')
local stopped = 0
for _, member in ipairs(redis.call('HKEYS', LIVE)) do
  if stop(member, letter, reason) then stopped = stopped + 1 end
end
for _, entry in ipairs(redis.call('ZRANGE', LATER, 0, most - 1)) do
  redis.call('ZREM', LATER, entry)
  if stop(string.match(entry, '^(%d+:%d+):'), letter, reason) then stopped = stopped + 1 end
end
for _, entry in ipairs(redis.call('ZRANGE', PARKED, 0, most - 1)) do
  local environment, row, from, to = parse_parked(entry)
  redis.call('ZREM', PARKED, entry)
  if environment then count('parked|' .. environment, from - to) end
  for sample = from or 0, (to or 0) - 1 do
    if stop(row .. ':' .. sample, letter, reason) then stopped = stopped + 1 end
  end
end
local entries = 0
while entries < most do
  local entry = redis.call('LPOP', BACKLOG)
  if not entry then break end
  local row, from, to = string.match(entry, '^(%d+):(%d+):(%d+):')
  from, to = tonumber(from) or 0, tonumber(to) or 0
  for sample = from, to - 1 do
    if stop(row .. ':' .. sample, letter, reason) then stopped = stopped + 1 end
  end
  entries = entries + 1 + math.floor((to - from) / 16)
end
mark_end()
return { 1, stopped, redis.call('LLEN', BACKLOG) + redis.call('ZCARD', LATER) + redis.call('ZCARD', PARKED) }
