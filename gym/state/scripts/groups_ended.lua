-- Find the log ids that are the last result of their group.
-- ARGV: log ids
-- Returns {how many were looked at, {log id, succeeded, failed, cancelled, expired}, ...}
local ended, completed = { #ARGV }, {}
for number, id in ipairs(ARGV) do
  local entry = redis.call('XRANGE', LOG, id, id)[1]
  local row = entry and string.match(entry[2][2], '^(%d+):')
  if row then
    if not completed[row] then
      if lookups >= LOOKUPS then
        ended[1] = number - 1
        break
      end
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
