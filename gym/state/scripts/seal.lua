-- Close a batch for further rows. Returns {known, ended}
even_when_full()
if redis.call('EXISTS', META) == 0 then return { 0, 0 } end
redis.call('HSET', META, 'sealed', '1')
return { 1, mark_end() }
