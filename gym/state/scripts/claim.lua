-- Claim rollouts that were dispatched to a worker.
-- ARGV: worker, then member, attempt, ...
-- Idempotent, since an answer may be lost: claims that this worker holds already are returned as they were.
-- Returns {now, {member, attempt, token, tries, replay}, ..., then {row number, row, ...}}; missing members were not
-- claimed. `replay` are the model calls of an attempt that was handed back.
local worker = ARGV[1]
local now = now_ms()
local asked = {}
for i = 2, #ARGV, 2 do asked[#asked + 1] = ARGV[i] end

-- cancelled rollouts do not start; claims that this worker holds already are returned again
local cancelled = redis.call('HGET', META, 'cancel') ~= '0'
local function may_start(member)
  if cancelled then return false end
  local row, sample = string.match(member, '^(%d+):(%d+)$')
  local from = stopping_from(row)
  return not from or tonumber(sample) < from
end

local members, lives, replays, rows, seen, named = {}, {}, {}, {}, {}, {}
local moved = 0
for number, value in ipairs(#asked > 0 and redis.call('HMGET', LIVE, unpack(asked)) or {}) do
  local live = value and parse_live(value)
  local member = asked[number]
  local ours = live and (live.state == 'd' and may_start(member) or live.state == 'r' and live.worker == worker)
  if ours and live.attempt == ARGV[2 * number + 1] and not named[member] then
    named[member] = true
    members[#members + 1], lives[#lives + 1], replays[#replays + 1] = member, live, replay_of(member)
    if live.state == 'd' then moved = moved + 1 end
    local row = string.match(member, '^(%d+):')
    if not seen[row] then rows[#rows + 1] = row end
    seen[row] = true
  end
end
if #members == 0 then return { tostring(now), {} } end

if moved > 0 then
  local token = redis.call('HINCRBY', META, 'fence', moved) - moved
  local changes = {}
  for number, live in ipairs(lives) do
    if live.state == 'd' then
      token = token + 1
      live.token = string.format('%d', token)
      changes[#changes + 1] = members[number]
      changes[#changes + 1] =
        table.concat({ 'r', live.attempt, live.token, now, live.environment, worker }, '|')
    end
  end
  redis.call('HSET', LIVE, unpack(changes))
  count('queued', -moved)
  count('dispatched', -moved)
  count('running', moved)
end

local claimed = { tostring(now) }
local tries, kept = redis.call('HMGET', TRIES, unpack(members)), redis.call('HMGET', TRAJ, unpack(replays))
for number, live in ipairs(lives) do
  claimed[#claimed + 1] = { members[number], live.attempt, live.token, tries[number] or '', kept[number] or '' }
end
local texts = {}
for number, text in ipairs(redis.call('HMGET', ROWS, unpack(rows))) do
  texts[#texts + 1] = rows[number]
  texts[#texts + 1] = text or ''
end
claimed[#claimed + 1] = texts
return claimed
