-- List the rollouts that workers and judge workers hold, a page at a time. Read-only.
-- ARGV: cursor in LIVE, how many to look at (about)
-- Returns {next cursor, {member, attempt, token, since, worker, ...}}
local page = redis.call('HSCAN', LIVE, ARGV[1], 'COUNT', ARGV[2])
local entries, held = page[2], {}
for i = 1, #entries, 2 do
  local state = string.sub(entries[i + 1], 1, 1)
  if state == 'r' or state == 'j' then
    local live = parse_live(entries[i + 1])
    held[#held + 1] = entries[i]
    held[#held + 1] = live.attempt
    held[#held + 1] = live.token
    held[#held + 1] = live.since
    held[#held + 1] = string.match(live.worker, '[^/]*$') -- in judging it follows the judge
  end
end
return { page[1], held }
