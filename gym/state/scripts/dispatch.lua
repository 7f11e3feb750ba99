-- Functions shared by `take` and `probe`; loaded between `lib` and either of them.
local MOST_LOOKED_AT = 1000 -- rollouts in one call, for ranges of any length
local SUSPECT_LATER_MS = 1000
local now = now_ms()
local taken = {}
local moved, looked_at = 0, 0
local any_done = redis.call('EXISTS', DONE) == 1
local any_tries = redis.call('EXISTS', TRIES) == 1
local any_tombs = redis.call('EXISTS', TOMBS) == 1
local any_suspects = redis.call('EXISTS', SUSPECTS) == 1
local held = {} -- parked environments: ARGV from the third on
for i = 3, #ARGV do held[ARGV[i]] = true end

-- Return whether a rollout still waits, so that its entry is valid.
local function waits(member)
  return not (any_done and redis.call('HEXISTS', DONE, member) == 1) and redis.call('HEXISTS', LIVE, member) == 0
end

-- Mark a rollout as handed to Celery. A suspect that may not go now is put off.
local function take(member, environment, suspects_go)
  looked_at = looked_at + 1
  if not waits(member) then return end
  local row, sample = string.match(member, '^(%d+):(%d+)$')
  local from = stopping_from(row)
  if from and tonumber(sample) >= from then return end -- it is about to be ended
  if any_tombs then
    if redis.call('SISMEMBER', TOMBS, row) == 1 then
      stop_group(row, 'c', 'cancelled')
      any_done, any_stops = true, nil
      return
    end
    if redis.call('SISMEMBER', TOMBS, member) == 1 then
      if stop(member, 'c', 'cancelled', true) then any_done = true end
      return
    end
  end
  local suspect = any_suspects and redis.call('HEXISTS', SUSPECTS, member) == 1
  if suspect and not suspects_go then
    redis.call('ZADD', LATER, now + SUSPECT_LATER_MS, member .. ':' .. environment)
    return
  end
  local attempt = 1
  if any_tries then attempt = attempts_of(member) + 1 end
  redis.call('HSET', LIVE, member, 'd|' .. attempt .. '|0|' .. now .. '|' .. environment)
  taken[#taken + 1] = environment
  taken[#taken + 1] = member
  taken[#taken + 1] = attempt
  taken[#taken + 1] = suspect and 1 or 0
  moved = moved + 1
end

-- Park the waiting rollouts of a range, as far as this call may look; return where the rest begins.
local function park_range(environment, row, from, to)
  local upto = math.min(to, from + math.max(1, MOST_LOOKED_AT - looked_at))
  local first
  for sample = from, upto - 1 do
    if waits(row .. ':' .. sample) then
      first = first or sample
    elseif first then
      park(environment, row, first, sample)
      first = nil
    end
  end
  if first then park(environment, row, first, upto) end
  looked_at = looked_at + upto - from
  return upto
end

local function put_in_front(row, from, to, environment)
  if from < to then redis.call('LPUSH', BACKLOG, row .. ':' .. from .. ':' .. to .. ':' .. environment) end
end

-- Dispatch a retry that is due, or park it.
local function take_due(entry, suspects_go)
  redis.call('ZREM', LATER, entry)
  local member, environment = string.match(entry, '^(%d+:%d+):(.*)$')
  if not member then return end -- unreadable; the audit finds its rollouts
  if held[environment] then
    local row, sample = string.match(member, '^(%d+):(%d+)$')
    park_range(environment, row, tonumber(sample), sample + 1)
  else
    take(member, environment, suspects_go)
  end
end

-- Return the first entry of PARKED whose environment is not among `held`: it may go again.
local released_from = '-' -- no entry before it may go: this call parks only held ones, or ones after it
local function first_released()
  while true do
    local entry = redis.call('ZRANGEBYLEX', PARKED, released_from, '+', 'LIMIT', 0, 1)[1]
    local environment = entry and parse_parked(entry)
    if entry and not environment then -- unreadable; the audit finds its rollouts
      redis.call('ZREM', PARKED, entry)
    elseif not entry or not held[environment] then
      return entry
    else
      released_from = '[' .. environment .. '}'
    end
  end
end

if redis.call('HGET', META, 'cancel') ~= '0' then return taken end
redis.call('HINCRBY', META, 'dispatched', 0) -- a full Redis refuses it here, before anything has moved
