-- Renew the lease of a call under way, or give the call up (lease 0), if it is this owner's.
-- KEYS: attempt, calls, index, failures. ARGV: call digest, owner, lease ms, turn; of a failed call also its record,
-- how many failures are kept, ttl ms.
local mark = redis.call('HGET', KEYS[3], 'd:' .. ARGV[1]) or ''
if string.match(mark, '^w:([^:]+):') ~= ARGV[2] then return 0 end
if tonumber(ARGV[3]) > 0 then
  local t = redis.call('TIME')
  redis.call('HSET', KEYS[3], 'd:' .. ARGV[1], 'w:' .. ARGV[2] .. ':' .. (t[1] * 1000 + math.floor(t[2] / 1000) + ARGV[3]))
  return 1
end
redis.call('HDEL', KEYS[3], 'd:' .. ARGV[1])
if ARGV[5] then
  redis.call('RPUSH', KEYS[4], ARGV[5])
  redis.call('LTRIM', KEYS[4], -ARGV[6], -1)
  redis.call('HSET', KEYS[3], 'f:' .. ARGV[1], '1')
  redis.call('HINCRBY', KEYS[3], 'bytes', #ARGV[5])
  redis.call('PEXPIRE', KEYS[4], ARGV[7])
end
-- the number is free again if no later call has begun
if tonumber(redis.call('HGET', KEYS[3], 'turns')) == ARGV[4] + 1 then redis.call('HINCRBY', KEYS[3], 'turns', -1) end
return 1
