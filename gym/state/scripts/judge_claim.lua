-- Claim rollouts that were sent to a judge worker. Idempotent for one claim id, since an answer may be lost.
-- ARGV: worker, claim id, then member, token it was sent with, ...
-- Returns {now, {member, attempt, token, environment, judge, header, lines, ask}, ...}; missing members were not claimed
local worker, claim = ARGV[1], ARGV[2]
local now = now_ms()
local claimed = { tostring(now) }
-- cancelled rollouts do not start; after the deadline only those that have a result already
local flag = redis.call('HGET', META, 'cancel')
local function may_start(member, header)
  if flag ~= '0' and (flag ~= '2' or not header.old) then return false end
  local row, sample = string.match(member, '^(%d+):(%d+)$')
  local from = stopping_from(row)
  return not from or tonumber(sample) < from
end
gather()
for i = 3, #ARGV, 2 do
  local member, sent = ARGV[i], ARGV[i + 1]
  local value = redis.call('HGET', LIVE, member)
  local live = value and parse_live(value)
  if live and (live.state == 's' and live.token == sent or live.state == 'j') then
    local header, lines = judging_of(member)
    local mark = claim .. ':' .. sent
    if live.state == 's' and may_start(member, header) or header.claim == mark then
      header.claim = mark
      if header.began == 0 then header.began = now end
      local first = cjson.encode(header)
      local token = redis.call('HINCRBY', META, 'fence', 1)
      redis.call('HSET', JUDGING, member, first .. '\n' .. lines)
      leave_judging(member, live)
      enter_judging(member, 'j', live.attempt, token, now, live.environment, live.judge, worker)
      claimed[#claimed + 1] = { member, live.attempt, tostring(token), live.environment, live.judge, first, lines,
        redis.call('HGET', ASKS, member) or '' }
    end
  end
end
settle()
return claimed
