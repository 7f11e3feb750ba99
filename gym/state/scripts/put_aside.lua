-- Remove live values that cannot be read; the audit finds their rollouts and queues them again.
-- ARGV: cursor in LIVE, entries to look at in this call
-- Returns {next cursor, member, value, ...}
even_when_full()
local page = redis.call('HSCAN', LIVE, ARGV[1], 'COUNT', ARGV[2])
local found = { page[1] }
for i = 1, #page[2], 2 do
  local member, value = page[2][i], page[2][i + 1]
  if is_unreadable(parse_live(value)) or not string.match(member, '^%d+:%d+$') then
    redis.call('HDEL', LIVE, member)
    redis.call('HDEL', JUDGING, member)
    found[#found + 1] = member
    found[#found + 1] = string.sub(value, 1, 200)
  end
end
return found
