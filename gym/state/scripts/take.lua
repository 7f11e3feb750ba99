-- Move up to ARGV[1] rollouts from the backlog to Celery; first retries that are due, then those no longer parked.
-- ARGV: how many, whether suspects may go (0 | 1), then the environments that are parked
-- Returns {environment, member, attempt, suspect (0 | 1), ...}; fewer than asked for if it had to look at many
local wanted, suspects_go = tonumber(ARGV[1]), ARGV[2] == '1'

for _, entry in ipairs(redis.call('ZRANGEBYSCORE', LATER, '-inf', now, 'LIMIT', 0, wanted)) do
  take_due(entry, suspects_go)
end

while moved < wanted and looked_at < MOST_LOOKED_AT do
  local entry = first_released()
  if not entry then break end
  local environment, row, sample, to = parse_parked(entry)
  redis.call('ZREM', PARKED, entry)
  count('parked|' .. environment, sample - to)
  while sample < to and moved < wanted and looked_at < MOST_LOOKED_AT do
    take(row .. ':' .. sample, environment, suspects_go)
    sample = sample + 1
  end
  if sample < to then park(environment, row, sample, to) end
end

while moved < wanted and looked_at < MOST_LOOKED_AT do
  local entry = redis.call('LPOP', BACKLOG)
  if not entry then break end
  local row, from, to, environment = string.match(entry, '^(%d+):(%d+):(%d+):(.*)$')
  to = tonumber(to) or 0
  local sample = tonumber(from) or 0 -- an unreadable entry is skipped; the audit finds its rollouts
  if held[environment] then
    sample = park_range(environment, row, sample, to)
  else
    while sample < to and moved < wanted and looked_at < MOST_LOOKED_AT do
      take(row .. ':' .. sample, environment, suspects_go)
      sample = sample + 1
    end
  end
  put_in_front(row, sample, to, environment)
end
count('dispatched', moved)
if any_tombs then mark_end() end
return taken
