-- Which of these log ids is the last result of its group.
-- ARGV: log ids
-- Returns {log id, succeeded, failed, cancelled, expired}, ...
local ended, completed = {}, {}
for _, id in ipairs(ARGV) do
  local entry = redis.call('XRANGE', LOG, id, id)[1]
  local row = entry and string.match(entry[2][2], '^(%d+):')
  if row then
    if not completed[row] then
      local _, last, outcomes = group_results(row)
      completed[row] = { last = last or '', outcomes = outcomes }
    end
    if completed[row].last == id then
      local n = completed[row].outcomes
      ended[#ended + 1] = { id, n.s, n.f, n.c, n.e }
    end
  end
end
return ended
