-- Count outcomes, a page at a time. Read-only.
-- ARGV: cursor, how many to look at (about)
-- Returns {next cursor, all outcomes, then for this page: succeeded, failed, cancelled, expired}
local page = redis.call('HSCAN', DONE, ARGV[1], 'COUNT', ARGV[2])
local found = { s = 0, f = 0, c = 0, e = 0 }
for i = 2, #page[2], 2 do
  local letter = string.sub(page[2][i], 1, 1)
  found[letter] = (found[letter] or 0) + 1
end
return { page[1], redis.call('HLEN', DONE), found.s, found.f, found.c, found.e }
