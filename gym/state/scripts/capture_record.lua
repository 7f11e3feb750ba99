-- Append a finished call if it is still this owner's; else return the answer that another one recorded.
-- KEYS: attempt, calls, index, failures. ARGV: attempt, call digest, owner, ttl ms, record, settings digest, then pairs of a
-- digest of a prefix of the conversation and its value (`$` in it is replaced by the record's position).
if tonumber(redis.call('GET', KEYS[1]) or '0') ~= tonumber(ARGV[1]) then return { 'lost' } end
local mark = redis.call('HGET', KEYS[3], 'd:' .. ARGV[2]) or ''
if string.match(mark, '^w:([^:]+):') ~= ARGV[3] then
  local place = string.match(mark, '^r:(%d+)$')
  if place then return { 'recorded', redis.call('LINDEX', KEYS[2], place) } end
  return { 'lost' }
end
local place = redis.call('RPUSH', KEYS[2], ARGV[5]) - 1
redis.call('HSET', KEYS[3], 'd:' .. ARGV[2], 'r:' .. place, 's:' .. ARGV[6], '1')
redis.call('HINCRBY', KEYS[3], 'bytes', #ARGV[5])
for number = 7, #ARGV, 2 do
  local value = string.gsub(ARGV[number + 1], '%$', tostring(place))
  -- a prefix at which another call has ended meanwhile keeps its value
  redis.call(value == 'i' and 'HSETNX' or 'HSET', KEYS[3], 'm:' .. ARGV[number], value)
end
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ARGV[4]) end
return { 'recorded', ARGV[5], place }
