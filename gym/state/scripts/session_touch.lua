-- Extend the expiry of a session that was used.
-- KEYS: session, all sessions, sessions of its owner
-- ARGV: session, idle ms, grace ms
-- Returns its expiry in ms, or 0 if there is no such session
if redis.call('HEXISTS', KEYS[1], 'worker') == 0 then return 0 end
local t = redis.call('TIME')
local expires = t[1] * 1000 + math.floor(t[2] / 1000) + ARGV[2]
redis.call('HSET', KEYS[1], 'expires_at', expires)
redis.call('PEXPIRE', KEYS[1], ARGV[2] + ARGV[3])
redis.call('ZADD', KEYS[2], 'XX', expires, ARGV[1])
redis.call('ZADD', KEYS[3], 'XX', expires, ARGV[1])
return expires
