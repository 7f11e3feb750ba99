-- Take or renew the dispatchers' lock, also in a full Redis.
-- KEYS[1]: the lock. ARGV: name, time to live in ms (0 = give it up). Returns whether it is held by this name now
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
if ARGV[2] == '0' then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
