-- A worker starts rollouts that were dispatched to it.
-- ARGV: worker, then member, attempt, ...
-- Returns {now, {member, attempt, token, tries}, ..., then 'rows', row number, row, ...}; what is not there was not claimed.
local worker = ARGV[1]
local now = now_ms()
local claimed = { tostring(now) }
local rows, seen = {}, {}
local moved = 0
for i = 2, #ARGV, 2 do
  local member, attempt = ARGV[i], ARGV[i + 1]
  local value = redis.call('HGET', LIVE, member)
  local live = value and parse_live(value)
  if live and live.state == 'd' and live.attempt == attempt then
    local token = redis.call('HINCRBY', META, 'fence', 1)
    redis.call('HSET', LIVE, member,
      'r|' .. attempt .. '|' .. token .. '|' .. now .. '|' .. live.environment .. '|' .. worker)
    moved = moved + 1
    claimed[#claimed + 1] = { member, attempt, tostring(token), redis.call('HGET', TRIES, member) or '' }
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
