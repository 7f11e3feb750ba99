-- Record the outcome of an attempt, once.
-- ARGV: member, attempt, token, outcome letter, record, trajectory, usable (0 | 1), early stop (0 = none),
--       then field, number, ... to add to the environment's sums
-- Returns {verdict, ended, stopped}: 1 committed, 2 was committed by this very attempt, 0 fenced off
local member, attempt, token, letter = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
even_when_full()
local value = redis.call('HGET', LIVE, member)
local live = value and parse_live(value)
if not live or (live.state ~= 'r' and live.state ~= 'j') or live.attempt ~= attempt or live.token ~= token then
  local done = redis.call('HGET', DONE, member)
  if done and string.match(done, '^%a|' .. attempt .. '|' .. token .. '|') then return { 2, 0, 0 } end
  count('fenced', 1)
  return { 0, 0, 0 }
end
leave_live(member, live)
keep_trajectory(member, ARGV[6])
finish(member, letter, attempt, token, { 'j', ARGV[5] })
local environment = live.environment
redis.call('HINCRBY', STATS, environment .. '|ended', 1)
for i = 9, #ARGV, 2 do
  local field, by = environment .. '|' .. ARGV[i], ARGV[i + 1]
  -- whole numbers cost a third, as long as the sum is one too
  local sum = string.find(by, '^%d+$') and redis.pcall('HINCRBY', STATS, field, by)
  if type(sum) ~= 'number' then redis.call('HINCRBYFLOAT', STATS, field, by) end
end
local stopped = 0
local wanted = tonumber(ARGV[8])
if wanted > 0 and ARGV[7] == '1' then
  local row = string.match(member, '^(%d+):')
  if redis.call('HINCRBY', GROUPS, row, 1) == wanted then stopped = stop_group(row, 'c', 'early_stop') end
end
return { 1, mark_end(), stopped }
