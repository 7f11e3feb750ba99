-- A worker starts rollouts that were dispatched to it.
-- ARGV: worker, then member, attempt, ...
-- Repeatable, since an answer may be lost: what this worker holds already is answered as it was.
-- Returns {now, {member, attempt, token, tries, replay}, ..., then {row number, row, ...}}; what is not there was not
-- claimed. `replay` are the model calls of an attempt that was handed back.
local worker = ARGV[1]
local now = now_ms()
local claimed = { tostring(now) }
local rows, seen = {}, {}
local moved = 0
for i = 2, #ARGV, 2 do
  local member, attempt = ARGV[i], ARGV[i + 1]
  local value = redis.call('HGET', LIVE, member)
  local live = value and parse_live(value)
  local fresh = live and live.state == 'd'
  local again = live and live.state == 'r' and live.worker == worker
  if (fresh or again) and live.attempt == attempt then
    local token = live.token
    if fresh then
      token = redis.call('HINCRBY', META, 'fence', 1)
      redis.call('HSET', LIVE, member,
        'r|' .. attempt .. '|' .. token .. '|' .. now .. '|' .. live.environment .. '|' .. worker)
      moved = moved + 1
    end
    claimed[#claimed + 1] = { member, attempt, tostring(token), redis.call('HGET', TRIES, member) or '',
      redis.call('HGET', TRAJ, replay_of(member)) or '' }
    local row = string.match(member, '^(%d+):')
    if not seen[row] then
      seen[row] = true
      rows[#rows + 1] = row
      rows[#rows + 1] = redis.call('HGET', ROWS, row) or ''
    end
  end
end
count('queued', -moved)
count('dispatched', -moved)
count('running', moved)
claimed[#claimed + 1] = rows
return claimed
