-- Begin a captured call, wait for the same one, or find its answer.
-- KEYS: attempt, calls, index, failures. ARGV: attempt, call digest, owner, lease ms, most bytes, ttl ms, settings digest,
-- how many prefixes of the conversation are left out, digests of its longest ones, shortest first.
local current = tonumber(redis.call('GET', KEYS[1]) or '0')
local attempt = tonumber(ARGV[1])
if attempt < current then return { 'stale', current } end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local mark = redis.call('HGET', KEYS[3], 'd:' .. ARGV[2])
if mark then
  local place = string.match(mark, '^r:(%d+)$')
  if place then return { 'recorded', redis.call('LINDEX', KEYS[2], place) } end
  local owner, till = string.match(mark, '^w:([^:]+):(%d+)$')
  if owner ~= ARGV[3] and tonumber(till) > now then return { 'underway' } end
end
if tonumber(redis.call('HGET', KEYS[3], 'bytes') or '0') > tonumber(ARGV[5]) then return { 'full' } end
redis.call('SET', KEYS[1], ARGV[1])
redis.call('HSETNX', KEYS[3], 'began', now)
local turn = redis.call('HINCRBY', KEYS[3], 'turns', 1) - 1
redis.call('HSET', KEYS[3], 'd:' .. ARGV[2], 'w:' .. ARGV[3] .. ':' .. (now + ARGV[4]))
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ARGV[6]) end
-- number of known messages, and of those up to the end of a recorded call
local known, before, found = 0, 0, ''
for number = #ARGV, 9, -1 do
  local place = redis.call('HGET', KEYS[3], 'm:' .. ARGV[number])
  if place then
    if known == 0 then known = ARGV[8] + number - 8 end
    if string.sub(place, 1, 2) == 'h:' then
      before, found = ARGV[8] + number - 8, place
      break
    end
  end
end
local settings_known = redis.call('HEXISTS', KEYS[3], 's:' .. ARGV[7])
local failed = redis.call('HEXISTS', KEYS[3], 'f:' .. ARGV[2])
return { 'begun', turn, known, before, found, settings_known, now - redis.call('HGET', KEYS[3], 'began'), failed }
