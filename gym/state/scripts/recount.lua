-- Recount a batch; rollouts that are neither live nor ended count as queued.
-- ARGV: most live entries to count, number of outcomes when they were counted, succeeded, failed, cancelled, expired
-- Returns 1, or 0 if the batch has changed meanwhile, has too many live rollouts, or holds more than was submitted
if redis.call('HLEN', LIVE) > tonumber(ARGV[1]) or redis.call('HLEN', DONE) ~= tonumber(ARGV[2]) then return 0 end
even_when_full()
local dispatched, running, judging = 0, 0, 0
for _, value in ipairs(redis.call('HVALS', LIVE)) do
  local state = string.sub(value, 1, 1)
  if state == 'd' then
    dispatched = dispatched + 1
  elseif state == 'r' then
    running = running + 1
  else
    judging = judging + 1
  end
end
local queued = tonumber(redis.call('HGET', META, 'submitted')) - running - judging - ARGV[2]
if queued < dispatched then return 0 end
redis.call('HSET', META, 'queued', queued, 'dispatched', dispatched, 'running', running, 'judging', judging,
  'succeeded', ARGV[3], 'failed', ARGV[4], 'cancelled', ARGV[5], 'expired', ARGV[6])
mark_end()
return 1
