-- Add the growth of a batch's counters since the last fold to the farm's; idempotent.
-- KEYS: farm's counters, folded counters by batch. ARGV: batch, its creation in ms, then counter, value, ...
redis.call('HDEL', KEYS[2], '') -- lets it pass in a full Redis
local known = {}
local created_at, folded = string.match(redis.call('HGET', KEYS[2], ARGV[1]) or '', '^(%d+)|(.*)$')
if created_at == ARGV[2] then
  for name, value in string.gmatch(folded, '([^ =]+)=(%d+)') do known[name] = tonumber(value) end
end
local now = {}
for i = 3, #ARGV, 2 do
  local before, value = known[ARGV[i]] or 0, tonumber(ARGV[i + 1])
  if value > before then redis.call('HINCRBY', KEYS[1], ARGV[i], value - before) end
  now[#now + 1] = ARGV[i] .. '=' .. string.format('%d', math.max(value, before))
end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2] .. '|' .. table.concat(now, ' '))
