-- Remove a batch that has ended. If it is gone already, its keys may be those of a new one being submitted.
-- KEYS: those of every script, then others. ARGV: the latest end in ms to remove, index of the first of KEYS to delete
-- Returns 1 if it is gone, 0 if it stays
if redis.call('EXISTS', META) == 0 then return 1 end
local ended_at = redis.call('HGET', META, 'ended_at')
if not ended_at or tonumber(ended_at) > tonumber(ARGV[1]) then return 0 end
for number = tonumber(ARGV[2]), #KEYS do redis.call('UNLINK', KEYS[number]) end
return 1
