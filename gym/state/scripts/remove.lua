-- Remove a batch that has ended. Where it is gone already, its keys may be those of a new one that is on its way in.
-- KEYS: those of every script, then others. ARGV: the latest end in ms that may go, from which of KEYS on
-- Returns 1 where it is gone, 0 where it stays
if redis.call('EXISTS', META) == 0 then return 1 end
local ended_at = redis.call('HGET', META, 'ended_at')
if not ended_at or tonumber(ended_at) > tonumber(ARGV[1]) then return 0 end
for number = tonumber(ARGV[2]), #KEYS do redis.call('UNLINK', KEYS[number]) end
return 1
