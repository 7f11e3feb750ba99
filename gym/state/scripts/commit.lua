-- Record the outcomes of attempts, each once.
-- ARGV: for each: member, attempt, token, outcome letter, record, trajectory, usable (0 | 1), early stop (0 = none),
--   its additions to the sums of its environment, JSON
-- Returns {verdict, ended, stopped} for each: 1 committed, 2 committed before by this very attempt, 0 fenced off
local answers, sums, addends = {}, {}, {}
-- everything that could fail comes before the first write
for i = 9, #ARGV, 9 do
  addends[i] = cjson.decode(ARGV[i])
  for field, by in pairs(addends[i]) do assert(type(by) == 'number', field .. ' is no number') end
end

local function add(field, by)
  sums[field] = (sums[field] or 0) + by
end

-- Return the verdict, and how many others an early stop has ended.
local function commit(added, member, attempt, token, letter, record, trajectory, usable, early_stop)
  local value = redis.call('HGET', LIVE, member)
  local live = value and parse_live(value)
  if not live or (live.state ~= 'r' and live.state ~= 'j') or live.attempt ~= attempt or live.token ~= token then
    local done = redis.call('HGET', DONE, member)
    if done and string.match(done, '^%a|' .. attempt .. '|' .. token .. '|') then return 2, 0 end
    count('fenced', 1)
    return 0, 0
  end
  leave_live(member, live)
  keep_trajectory(member, trajectory)
  finish(member, letter, attempt, token, { 'j', record })
  add(live.environment .. '|ended', 1)
  for field, by in pairs(added) do add(live.environment .. '|' .. field, by) end
  local wanted = tonumber(early_stop)
  if wanted > 0 and usable == '1' then
    local row = string.match(member, '^(%d+):')
    if redis.call('HINCRBY', GROUPS, row, 1) == wanted then return 1, stop_group(row, 'c', 'early_stop') end
  end
  return 1, 0
end

even_when_full()
gather()
for i = 1, #ARGV, 9 do
  local verdict, stopped = commit(addends[i + 8], unpack(ARGV, i, i + 7))
  answers[#answers + 1] = { verdict, 0, stopped }
end
settle()
for field, by in pairs(sums) do
  -- integers cost a third, as long as the sum is one too
  local sum = by == math.floor(by) and redis.pcall('HINCRBY', STATS, field, by)
  -- a sum that overflows stays as it was
  if type(sum) ~= 'number' then redis.pcall('HINCRBYFLOAT', STATS, field, by) end
end
local ended = mark_end()
for _, answer in ipairs(answers) do
  if answer[1] == 1 then answer[2] = ended end
end
return answers
