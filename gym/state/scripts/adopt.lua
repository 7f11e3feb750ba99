-- Queue the rollouts again that nothing holds: not ended, not live, and in no line. For use where the counts show a loss.
-- ARGV: first row, row behind the last, most entries of the backlog and of what is live
-- Returns the members that were queued again, or -1 where the batch holds too much to be searched
local most = tonumber(ARGV[3])
if redis.call('LLEN', BACKLOG) + redis.call('ZCARD', PARKED) > most or redis.call('HLEN', LIVE) > most then return -1 end
even_when_full()
local lined = {}
for _, entry in ipairs(redis.call('LRANGE', BACKLOG, 0, -1)) do
  local row, from, to = string.match(entry, '^(%d+):(%d+):(%d+):')
  for sample = tonumber(from) or 0, (tonumber(to) or 0) - 1 do lined[row .. ':' .. sample] = true end
end
for _, entry in ipairs(redis.call('ZRANGE', PARKED, 0, -1)) do
  local _, row, from, to = parse_parked(entry)
  for sample = from or 0, (to or 0) - 1 do lined[row .. ':' .. sample] = true end
end
-- counters that say more than is there lose what is found
local missing = { running = tonumber(redis.call('HGET', META, 'running')), judging = tonumber(redis.call('HGET', META, 'judging')),
                  dispatched = tonumber(redis.call('HGET', META, 'dispatched')) }
for _, value in ipairs(redis.call('HVALS', LIVE)) do
  local state = string.sub(value, 1, 1)
  local counter = state == 'd' and 'dispatched' or COUNTER[state]
  if missing[counter] then missing[counter] = missing[counter] - 1 end
end
local found = {}
for number = tonumber(ARGV[1]), tonumber(ARGV[2]) - 1 do
  local row = tostring(number)
  local samples, environment = row_header(row)
  for sample = 0, (samples or 0) - 1 do
    local member = row .. ':' .. sample
    if not lined[member] and redis.call('HEXISTS', DONE, member) == 0 and redis.call('HEXISTS', LIVE, member) == 0
      and not redis.call('ZSCORE', LATER, member .. ':' .. environment) then
      redis.call('ZADD', LATER, 0, member .. ':' .. environment)
      for _, counter in ipairs({ 'running', 'judging', 'dispatched' }) do
        if missing[counter] > 0 then
          missing[counter] = missing[counter] - 1
          count(counter, -1)
          if counter ~= 'dispatched' then count('queued', 1) end
          break
        end
      end
      found[#found + 1] = member
    end
  end
end
return found
