-- Functions shared by all scripts of a batch; loaded before each of them.
-- A live value is STATE|ATTEMPT|TOKEN|SINCE|ENVIRONMENT[|WORKER]; STATE is d (in Celery) or r (running), and of judging
-- w (waits until SINCE), s (sent to Celery) or j (with a judge worker). Of those three, WORKER is JUDGE/[WORKER]; it is
-- JUDGE/parked for a w whose judge keeps failing; SINCE is then the end of its judge's clock.
local META, ROWS, TASKS, BACKLOG, LATER, LIVE, DONE, LOG, TRAJ, TRIES, GROUPS, STATS, TOMBS, STAGING =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11], KEYS[12], KEYS[13], KEYS[14]
local PARKED, SUSPECTS = KEYS[15], KEYS[16]
local AWAITING, JUDGING, ASKS, JUDGES = KEYS[17], KEYS[18], KEYS[19], KEYS[20]
local STOPS = KEYS[21]

local OUTCOME = { s = 'succeeded', f = 'failed', c = 'cancelled', e = 'expired' }
local COUNTER = { d = 'queued', r = 'running', w = 'judging', s = 'judging', j = 'judging' }

-- A full Redis refuses writes that grow unless the script has written before. Scripts that end work must pass.
local function even_when_full()
  redis.call('HDEL', META, '')
end

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- Counters by key and field, between `gather` and `settle`: a script that moves many rollouts writes each counter once.
local gathered
local function gather()
  gathered = {}
end

local function settle()
  for key, counters in pairs(gathered) do
    for field, by in pairs(counters) do
      if by ~= 0 then redis.call('HINCRBY', key, field, by) end
    end
  end
  gathered = nil
end

local function count_in(key, field, by)
  if gathered then
    local counters = gathered[key] or {}
    gathered[key] = counters
    counters[field] = (counters[field] or 0) + by
  elseif by ~= 0 then
    redis.call('HINCRBY', key, field, by)
  end
end

local function count(field, by)
  count_in(META, field, by)
end

-- Placeholder for a live value that cannot be read. It has no state, so no script acts on it; see put_aside.lua.
local UNREADABLE = { state = '', attempt = '', token = '', since = 0, environment = '', worker = '' }

local function is_unreadable(live)
  return live == UNREADABLE
end

local function parse_live(value)
  local state, attempt, token, since, environment, worker =
    string.match(value, '^([drwsj])|(%d+)|(%d+)|(%d+)|([^|]*)|?(.*)$')
  if not state then return UNREADABLE end
  if COUNTER[state] == 'judging' and not string.find(worker, '/', 1, true) then return UNREADABLE end
  return { state = state, attempt = attempt, token = token, since = tonumber(since),
           environment = environment, worker = worker, judge = string.match(worker, '^([^/]*)/') }
end

-- Return all live values if they are few, else a page: the next cursor, entries, and whether these are all. A cursor
-- with a leading `=` is that of an unfinished page: a call changes at most MOST_CHANGED of it.
local MOST_CHANGED = 150
local function some_live(cursor, most)
  if redis.call('HLEN', LIVE) <= most then return '0', redis.call('HGETALL', LIVE), true end
  local page = redis.call('HSCAN', LIVE, string.match(cursor, '%d+'), 'COUNT', most)
  return page[1], page[2], false
end

local function is_parked(live)
  return live.state == 'w' and string.sub(live.worker, -7) == '/parked'
end

-- Return the entry in a judge's queue. Parked ones sort after the rest, where only their own scripts look.
local function place_in_line(member, live)
  return live.judge .. (is_parked(live) and '|p' or '|') .. string.format('%013d', live.since) .. '|' .. member
end

local function count_judging(live, by)
  count_in(JUDGES, live.judge .. (live.state == 'w' and '|waiting' or '|asked'), by)
  if is_parked(live) then count_in(JUDGES, live.judge .. '|parked', by) end
end

-- Put a rollout into one of the three states of judging: its live value, its queue entry, the judge's counters.
local function enter_judging(member, state, attempt, token, since, environment, judge, worker)
  local live = { state = state, since = since, judge = judge, worker = judge .. '/' .. worker }
  redis.call('HSET', LIVE, member, table.concat({ state, attempt, token, since, environment, live.worker }, '|'))
  if state == 'w' then redis.call('ZADD', AWAITING, 0, place_in_line(member, live)) end
  count_judging(live, 1)
end

local function leave_judging(member, live)
  if live.state == 'w' then redis.call('ZREM', AWAITING, place_in_line(member, live)) end
  count_judging(live, -1)
end

-- Return member and live value of an entry in a judge's queue. A stale entry is removed.
local function who_waits(entry)
  local member = string.match(entry, '|(%d+:%d+)$')
  local value = member and redis.call('HGET', LIVE, member)
  local live = value and parse_live(value)
  if live and live.state == 'w' and entry == place_in_line(member, live) then return member, live end
  redis.call('ZREM', AWAITING, entry)  -- its live value was lost, see adopt.lua
end

-- Return the header of a judging and the lines after it: the record so far and the failed tries.
-- An unreadable one gets a header that says so, and the judge worker that claims it ends the rollout.
local function judging_of(member)
  local first, rest = string.match(redis.call('HGET', JUDGING, member) or '', '^([^\n]*)\n(.*)$')
  local readable, header = pcall(cjson.decode, first or '')
  if not readable or type(header) ~= 'table' then header = { asker = '', over_at = 0, unreadable = true } end
  header.began, header.lost = tonumber(header.began) or 0, tonumber(header.lost) or 0
  return header, rest or '\n'
end

local function leave_live(member, live)
  redis.call('HDEL', LIVE, member)
  count(COUNTER[live.state], -1)
  if live.state == 'd' then count('dispatched', -1) end
  if live.judge then
    leave_judging(member, live)
    redis.call('HDEL', JUDGING, member)
  end
end

-- Return the size of a stored trajectory: its own bytes, or those that its pointer names.
local function stored_bytes(value)
  return tonumber(string.match(value, '^f(%d+) ')) or #value
end

local function keep_trajectory(member, value)
  if value == '' then return end
  redis.call('HSET', TRAJ, member, value)
  count('stored_bytes', stored_bytes(value))
end

local function keep_ask(member, value)
  redis.call('HSET', ASKS, member, value)
  count('stored_bytes', stored_bytes(value))
end

-- Drop the trajectory and the judge questions of an attempt that is taken back. A file stays until its batch is removed.
local function drop_trajectory(member)
  for _, key in ipairs({ TRAJ, ASKS }) do
    local value = redis.call('HGET', key, member)
    if value then
      redis.call('HDEL', key, member)
      if string.sub(value, 1, 1) ~= 'f' then count('stored_bytes', -stored_bytes(value)) end
    end
  end
end

-- Return unpublished ranges of row numbers, read once in a call: no script reads headers after changing them.
local staged
local function unpublished(row)
  if not staged then
    staged = {}
    for _, ranges in ipairs(redis.call('HVALS', STAGING)) do
      for from, to in string.gmatch(ranges, '(%d+):(%d+)') do staged[#staged + 1] = { tonumber(from), tonumber(to) } end
    end
  end
  for _, range in ipairs(staged) do
    if row >= range[1] and row < range[2] then return true end
  end
  return false
end

-- Return the header of a published row: samples, environment; nil without one.
local function row_header(row)
  if unpublished(tonumber(row)) then return nil end
  local value = redis.call('HGET', ROWS, row)
  if not value then return nil end
  local samples, environment = string.match(value, '^(%d+) (%S+) ')
  return tonumber(samples), environment
end

local function attempts_of(member)
  local lines = redis.call('HGET', TRIES, member)
  if not lines then return 0 end
  local _, n = string.gsub(lines, '\n', '\n')
  return n
end

-- Count a rollout's failed attempts that were the infrastructure's fault, and those that were deaths of a worker.
local function faults_of(member)
  local infrastructure, deaths = 0, 0
  for line in string.gmatch(redis.call('HGET', TRIES, member) or '', '[^\n]+') do
    local readable, try = pcall(cjson.decode, line)
    if not readable or type(try) ~= 'table' then try = {} end -- an unreadable try counts too
    if try.retryable ~= false then infrastructure = infrastructure + 1 end
    if try.kind == 'worker_lost' then deaths = deaths + 1 end
  end
  return infrastructure, deaths
end

local function add_try(member, line)
  local lines = redis.call('HGET', TRIES, member) or ''
  redis.call('HSET', TRIES, member, lines .. line .. '\n')
end

-- Return the field of the model calls that an attempt had completed when its worker handed it back.
local function replay_of(member)
  return member .. '|replay'
end

-- Forget a failed attempt; those after it count one less.
local function drop_try(member, attempt)
  local kept, number = {}, 0
  for line in string.gmatch(redis.call('HGET', TRIES, member) or '', '[^\n]+\n') do
    number = number + 1
    if number ~= attempt then kept[#kept + 1] = line end
  end
  if #kept > 0 then
    redis.call('HSET', TRIES, member, table.concat(kept))
  else
    redis.call('HDEL', TRIES, member)
  end
end

local function mark_end()
  local m = redis.call('HMGET', META, 'submitted', 'succeeded', 'failed', 'cancelled', 'expired', 'sealed')
  local ended = (m[2] or 0) + (m[3] or 0) + (m[4] or 0) + (m[5] or 0)
  if m[6] == '1' and tonumber(m[1] or 0) == ended then
    redis.call('HSETNX', META, 'ended_at', now_ms())
    return 1
  end
  return 0
end

-- Add a result to the log, under the time in ms and its number in the log; both grow. If the log goes back, as after a
-- restored backup, numbers repeat, which reveals a reader that was ahead (gym/state/ledger/log_position.py).
local FIRST_NUMBER = 1000000 -- above those in logs without numbers
local logged, log_ms
local function add_to_log(member, fields)
  logged = (logged or tonumber(redis.call('HGET', META, 'logged') or '0')) + 1
  count('logged', 1)
  log_ms = log_ms or now_ms()
  local number = string.format('-%d', FIRST_NUMBER + logged)
  local id = redis.pcall('XADD', LOG, string.format('%d', log_ms) .. number, 'm', member, unpack(fields))
  if type(id) == 'string' then return id end
  local info = redis.call('XINFO', 'STREAM', LOG) -- the last entry is ahead of the server's clock
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then
      local last_ms, last_number = string.match(info[i + 1], '^(%d+)-(%d+)$')
      local after = tonumber(last_number) >= FIRST_NUMBER + logged and 1 or 0 -- an entry that no script wrote
      log_ms = tonumber(last_ms) + after
    end
  end
  return redis.call('XADD', LOG, string.format('%d', log_ms) .. number, 'm', member, unpack(fields))
end

-- Record a final state. The caller has taken the rollout out of the state it was in.
local function finish(member, letter, attempt, token, fields)
  redis.call('HDEL', TRAJ, replay_of(member))
  local id = add_to_log(member, fields)
  redis.call('HSET', DONE, member, letter .. '|' .. attempt .. '|' .. token .. '|' .. id)
  count(OUTCOME[letter], 1)
end

-- End a rollout without a worker: cancelled, expired, or failed because its workers died.
local function end_here(member, letter, reason, attempt, token, environment, error)
  finish(member, letter, attempt, token,
    { 'o', OUTCOME[letter], 's', reason, 'a', attempt, 'v', environment, 't', now_ms(), 'e', error or '' })
  redis.call('HINCRBY', STATS, environment .. '|ended', 1)
end

-- Restore the earlier result of a rollout that is being judged again.
local function put_back(member, live, header, lines)
  leave_live(member, live)
  finish(member, header.old.letter, live.attempt, live.token, { 'j', string.match(lines, '^[^\n]*') })
  redis.call('HINCRBY', STATS, live.environment .. '|ended', 1)
  for field, value in pairs(header.old.sums) do
    redis.call('HINCRBYFLOAT', STATS, live.environment .. '|' .. field, value)
  end
end

-- PARKED holds ENVIRONMENT|ROW:FROM:TO, the row in 12 digits and every score 0, so the entries of an environment
-- are adjacent, in the order of rows. `parked|ENVIRONMENT` in META counts their rollouts.
local any_parked
local function park(environment, row, from, to)
  any_parked = true
  redis.call('ZADD', PARKED, 0, string.format('%s|%012d:%d:%d', environment, row, from, to))
  count('parked|' .. environment, to - from)
end

local function parse_parked(entry)
  local environment, row, from, to = string.match(entry, '^([^|]*)|0*(%d+):(%d+):(%d+)$')
  return environment, row, tonumber(from), tonumber(to)
end

-- Remove samples [first, last) of a row from the parked ones, if they are among them. Reads the parked entries of
-- the row once, which may be as many as it has samples.
local function unpark(environment, row, first, last)
  if any_parked == nil then any_parked = redis.call('EXISTS', PARKED) == 1 end
  if not any_parked then return end
  local at = string.format('%s|%012d', environment, row)
  for _, entry in ipairs(redis.call('ZRANGEBYLEX', PARKED, '[' .. at .. ':', '(' .. at .. ';')) do
    local _, _, from, to = parse_parked(entry)
    if from and from < last and to > first then
      redis.call('ZREM', PARKED, entry)
      count('parked|' .. environment, from - to)
      if from < first then park(environment, row, from, first) end
      if last < to then park(environment, row, last, to) end
    end
  end
end

-- End one rollout in any state; false if it has ended already or does not exist. `lined`: the caller has taken
-- it out of its queue.
local function stop(member, letter, reason, lined)
  if not member then return false end -- the entry cannot be read
  local value = redis.call('HGET', LIVE, member)
  if value then
    local live = parse_live(value)
    if is_unreadable(live) then return false end -- it ends after put_aside.lua
    if live.judge then
      local header, lines = judging_of(member)
      if header.old then  -- it has a result, which a deadline does not remove
        if letter ~= 'e' then put_back(member, live, header, lines) end
        return false
      end
    end
    leave_live(member, live)
    end_here(member, letter, reason, live.attempt, live.token, live.environment)
    return true
  end
  if redis.call('HEXISTS', DONE, member) == 1 then return false end
  local row, sample = string.match(member, '^(%d+):(%d+)$')
  if not row then return false end
  local samples, environment = row_header(row)
  if not samples or tonumber(sample) >= samples then return false end
  if not lined then unpark(environment, row, tonumber(sample), sample + 1) end
  count('queued', -1)
  end_here(member, letter, reason, attempts_of(member), 0, environment)
  return true
end

-- End samples [from, to) of a row, in any state; return how many. The caller bounds the range. `lined`: the
-- caller has taken them out of their queue.
local function stop_range(row, environment, from, to, letter, reason, lined)
  local members = {}
  for sample = from, to - 1 do members[#members + 1] = row .. ':' .. sample end
  local lives, dones = redis.call('HMGET', LIVE, unpack(members)), redis.call('HMGET', DONE, unpack(members))
  local tries = redis.call('HMGET', TRIES, unpack(members))
  local now, replays, ended, stopped = now_ms(), {}, {}, 0
  if not lined then unpark(environment, row, from, to) end
  for number, member in ipairs(members) do
    if lives[number] then
      if stop(member, letter, reason) then stopped = stopped + 1 end
    elseif not dones[number] then
      local attempts = tries[number] and select(2, string.gsub(tries[number], '\n', '\n')) or 0
      local id = redis.call('XADD', LOG, '*', 'm', member, 'o', OUTCOME[letter], 's', reason, 'a', attempts,
        'v', environment, 't', now, 'e', '')
      ended[#ended + 1] = member
      ended[#ended + 1] = letter .. '|' .. attempts .. '|0|' .. id
      replays[#replays + 1] = replay_of(member)
    end
  end
  if #replays > 0 then
    redis.call('HSET', DONE, unpack(ended))
    redis.call('HDEL', TRAJ, unpack(replays))
    count('queued', -#replays)
    count(OUTCOME[letter], #replays)
    count_in(STATS, environment .. '|ended', #replays)
  end
  return stopped + #replays
end

-- STOPS holds ROW -> NEXT|LETTER|REASON of groups too large for one script: samples from NEXT on are still to be ended,
-- and none of them starts. `stops` in META counts them; the dispatcher steps them, see stop_step.lua.
local STOP_AT_ONCE, stop_room = 64, 256 -- samples of a group, and of all groups in one call
local function stop_later(row, letter, reason)
  if redis.call('HSETNX', STOPS, row, '0|' .. letter .. '|' .. reason) == 1 then count('stops', 1) end
end

-- Return the sample from which on a row is being stopped, nil if it is not.
local any_stops
local function stopping_from(row)
  if any_stops == nil then any_stops = redis.call('EXISTS', STOPS) == 1 end
  local value = any_stops and redis.call('HGET', STOPS, row)
  return value and tonumber(string.match(value, '^%d+')) or nil
end

-- End a group now, or in steps if it is large or this call has ended enough; return how many have ended now.
local function stop_group(row, letter, reason)
  local samples, environment = row_header(row)
  if not samples then return 0 end
  if samples > STOP_AT_ONCE or samples > stop_room then
    stop_later(row, letter, reason)
    return 0
  end
  stop_room = stop_room - samples
  return stop_range(row, environment, 0, samples, letter, reason, false)
end
