-- One write that a full Redis takes too, since running work depends on it: PERSIST frees nothing and lets it through.
-- KEYS[1]: a key without a time to live. ARGV: the command, then its arguments behind the key.
redis.call('PERSIST', KEYS[1])
return redis.call(ARGV[1], KEYS[1], unpack(ARGV, 2))
