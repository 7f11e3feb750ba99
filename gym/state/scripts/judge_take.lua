-- Move up to ARGV[2] rollouts whose time has come from the line before judge ARGV[1] to Celery, of those that
-- may be tried since ARGV[3] ms.
-- Returns {member, token, ...}
local judge, wanted = ARGV[1], tonumber(ARGV[2])
local now = now_ms()
local taken = {}
local until_now = '[' .. judge .. '|' .. string.format('%013d', now - ARGV[3]) .. '|~'
for _, entry in ipairs(redis.call('ZRANGEBYLEX', AWAITING, '[' .. judge .. '|', until_now, 'LIMIT', 0, wanted)) do
  local member = string.match(entry, '|(%d+:%d+)$')
  local value = redis.call('HGET', LIVE, member)
  local live = value and parse_live(value)
  if not live or live.state ~= 'w' then  -- lost from where it is held, see adopt.lua
    redis.call('ZREM', AWAITING, entry)
  else
    local token = redis.call('HINCRBY', META, 'fence', 1)
    leave_judging(member, live)
    enter_judging(member, 's', live.attempt, token, now, live.environment, judge, '')
    taken[#taken + 1] = member
    taken[#taken + 1] = token
  end
end
return taken
