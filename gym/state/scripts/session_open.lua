-- Register an environment session before it is created.
-- KEYS: session, all sessions, sessions of its owner
-- ARGV: session, worker, environment, owner, most sessions of an owner, idle ms, grace ms, digest
-- Returns {verdict (open | taken | full), sessions of the owner, now}
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)
local open = redis.call('ZCARD', KEYS[3])
if redis.call('EXISTS', KEYS[1]) == 1 then return { 'taken', open, now } end
if open >= tonumber(ARGV[5]) then return { 'full', open, now } end
local expires = now + ARGV[6]
redis.call('HSET', KEYS[1], 'worker', ARGV[2], 'environment', ARGV[3], 'owner', ARGV[4], 'created_at', now,
  'expires_at', expires, 'digest', ARGV[8])
redis.call('PEXPIRE', KEYS[1], ARGV[6] + ARGV[7])
redis.call('ZADD', KEYS[2], expires, ARGV[1])
redis.call('ZADD', KEYS[3], expires, ARGV[1])
redis.call('PEXPIRE', KEYS[3], 7 * 24 * 3600 * 1000)
return { 'open', open + 1, now }
