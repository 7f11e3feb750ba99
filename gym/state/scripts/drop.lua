-- Drop the trajectories and judge questions of a batch that has ended; its records stay.
-- ARGV: reason
-- Returns 1, or 0 if it has not ended
if redis.call('HEXISTS', META, 'ended_at') == 0 then return 0 end
redis.call('UNLINK', TRAJ, ASKS)
redis.call('HSET', META, 'dropped', ARGV[1] .. '|' .. now_ms())
redis.call('HDEL', META, 'stored_bytes')
return 1
