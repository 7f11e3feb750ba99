-- Run one write that a full Redis accepts too, since running work depends on it: PERSIST changes nothing and admits it.
-- KEYS[1]: a key without a time to live. ARGV: the command, then its arguments after the key.
redis.call('PERSIST', KEYS[1])
return redis.call(ARGV[1], KEYS[1], unpack(ARGV, 2))
