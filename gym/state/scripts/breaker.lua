-- One circuit breaker, closed until a number of consecutive failures opens it. Does not use `lib`.
-- KEYS: breakers. ARGV: operation, breaker (KIND|NAME), first pause in ms, longest pause in ms, then by operation:
--   fail: casualty (BATCH MEMBER ATTEMPT TOKEN), failures that open it, ms since the worker saw it succeed (-1 = not
--     seen), whether this was the probe (0 | 1), stage, error
--   probe: ms for which no other probe may go
--   alive: close it. missed: the probe was inconclusive. soon: probe at once. sweep: forget it if it has no failures
-- Returns {verdict, time, refund, ...}. fail gives 0 closed, 1 open until the time, 2 opened by this failure, with the
-- earlier casualties; alive gives 1 if it was open since the time; probe gives 1 if one may go now
local what, name, first, longest = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local FORGET_MS = 3600000
redis.call('HDEL', KEYS[1], '') -- a full Redis accepts scripts that start with this
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local text = redis.call('HGET', KEYS[1], name)
local readable, breaker = pcall(cjson.decode, text or '')
if not readable or type(breaker) ~= 'table' or breaker.streak ~= nil and type(breaker.streak) ~= 'table' then
  breaker = nil -- missing or unreadable, so it starts anew
end
if breaker then
  breaker.level = tonumber(breaker.level) or 0
  breaker.since = breaker.since and tonumber(breaker.since) or breaker.streak and now or nil
  breaker.next_probe_at = breaker.opened_at and (tonumber(breaker.next_probe_at) or now) or breaker.next_probe_at
end
if not breaker and text and what == 'sweep' then redis.call('HDEL', KEYS[1], name) end

local function save()
  redis.call('HSET', KEYS[1], name, cjson.encode(breaker))
end

local function pause(level)
  return math.min(longest, first * 2 ^ math.min(level, 30))
end

-- Soon after a release, the pause continues to grow from its last length.
local function remembers()
  return breaker.released_at and now - breaker.released_at <= 2 * pause(breaker.level)
end

local function forget_failures()
  if remembers() then
    breaker = { level = breaker.level, released_at = breaker.released_at }
    save()
  else
    redis.call('HDEL', KEYS[1], name)
  end
end

local function opened(verdict)
  local answer = { verdict, breaker.next_probe_at }
  for _, who in ipairs(verdict == 2 and breaker.streak or {}) do
    if who ~= breaker.opener then answer[#answer + 1] = who end
  end
  return answer
end

if what == 'fail' then
  local who, needed, seen_ms, probe = ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8] == '1'
  if breaker and breaker.opened_at then
    if who == breaker.opener then return opened(2) end -- the answer was lost
    if probe and who ~= breaker.probe then
      breaker.probe, breaker.stage, breaker.error = who, ARGV[9], ARGV[10]
      breaker.level, breaker.probing_until = breaker.level + 1, 0
      breaker.next_probe_at = now + pause(breaker.level)
      save()
    end
    return opened(1)
  end
  breaker = breaker or {}
  if breaker.streak and seen_ms >= 0 and now - seen_ms > breaker.since then breaker.streak = nil end
  breaker.streak = breaker.streak or {}
  if #breaker.streak == 0 then breaker.since = now end
  for _, known in ipairs(breaker.streak) do
    if known == who then return { 0, 0 } end
  end
  table.insert(breaker.streak, who)
  breaker.stage, breaker.error = ARGV[9], ARGV[10]
  if #breaker.streak < needed then
    save()
    return { 0, 0 }
  end
  breaker.level = remembers() and breaker.level + 1 or 0
  breaker.opened_at, breaker.opener, breaker.released_at = now, who, nil
  breaker.next_probe_at = now + pause(breaker.level)
  save()
  return opened(2)
end

if not breaker then return { 0, 0 } end
if what == 'alive' then
  local since = breaker.opened_at
  if since then
    breaker = { level = breaker.level, released_at = now }
    save()
    return { 1, since }
  end
  if breaker.streak then forget_failures() end
elseif what == 'probe' then
  if not breaker.opened_at or breaker.next_probe_at > now or (breaker.probing_until or 0) > now then return { 0, 0 } end
  breaker.probing_until = now + ARGV[5]
  save()
  return { 1, now }
elseif what == 'soon' or what == 'missed' then
  if breaker.opened_at then
    breaker.next_probe_at, breaker.probing_until = now + (what == 'missed' and pause(breaker.level) or 0), 0
    save()
  end
elseif what == 'sweep' and not breaker.opened_at then
  if not breaker.streak or now - breaker.since > FORGET_MS then forget_failures() end
end
return { 0, 0 }
