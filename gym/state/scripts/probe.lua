-- Move one parked rollout to Celery: of a parked environment, or any if the whole batch is parked.
-- ARGV: environment ('' = any that is not parked itself), a random number, then the environments that are parked
-- Returns the same as `take`
local wanted, seed = ARGV[1], tonumber(ARGV[2])
if wanted ~= '' then
  local least, most = '[' .. wanted .. '|', '(' .. wanted .. '}'
  local entries = redis.call('ZLEXCOUNT', PARKED, least, most)
  if entries == 0 then return taken end
  local entry = redis.call('ZRANGEBYLEX', PARKED, least, most, 'LIMIT', seed % entries, 1)[1]
  local _, row, from, to = parse_parked(entry)
  if not row then -- unreadable; the audit finds its rollouts
    redis.call('ZREM', PARKED, entry)
    return taken
  end
  local sample = from + math.floor(seed / entries) % (to - from)
  unpark(wanted, row, sample, sample + 1)
  take(row .. ':' .. sample, wanted, false)
else
  local due = redis.call('ZCOUNT', LATER, '-inf', now)
  for try = 1, 250 do
    local backlog, released = redis.call('LLEN', BACKLOG), first_released()
    local choices = due + backlog + (released and 1 or 0)
    if moved > 0 or choices == 0 or looked_at >= MOST_LOOKED_AT then break end
    local choice = (seed + try) % choices
    if choice == due + backlog then
      local environment, row, from = parse_parked(released)
      unpark(environment, row, from, from + 1)
      take(row .. ':' .. from, environment, false)
    elseif choice < due then
      take_due(redis.call('ZRANGEBYSCORE', LATER, '-inf', now, 'LIMIT', choice, 1)[1], false)
      due = due - 1
    else
      local row, from, to, environment = string.match(redis.call('LPOP', BACKLOG), '^(%d+):(%d+):(%d+):(.*)$')
      from, to = tonumber(from) or 0, tonumber(to) or 0
      if from >= to then
        backlog = backlog - 1 -- empty or unreadable
      elseif held[environment] then
        put_in_front(row, park_range(environment, row, from, to), to, environment)
      else
        put_in_front(row, from + 1, to, environment)
        take(row .. ':' .. from, environment, false)
      end
    end
  end
end
count('dispatched', moved)
if any_tombs then mark_end() end
return taken
