-- Store a process's policy revision and load; a full Redis accepts it too, since a pause waits for it.
-- KEYS: reports, revision. ARGV: process, the revision that it obeys, ms until expiry, its load as JSON
-- Returns the newest revision.
redis.call('PERSIST', KEYS[1])
local now = redis.call('TIME')
local ends = string.format('%d', now[1] * 1000 + math.floor(now[2] / 1000) + ARGV[3])
redis.call('HSET', KEYS[1], ARGV[1], '{"revision":' .. ARGV[2] .. ',"until":' .. ends .. ',"lanes":' .. ARGV[4] .. '}')
return tonumber(redis.call('GET', KEYS[2]) or 0)
