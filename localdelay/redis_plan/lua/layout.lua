-- KEYS: layout. ARGV: channel, the generation that must be there, or ''; generation shards top former.
if (redis.call('HGET', KEYS[1], 'generation') or '') ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'generation', ARGV[3], 'shards', ARGV[4], 'top', ARGV[5], 'former', ARGV[6])
redis.call('PUBLISH', ARGV[1], 'layout')
return 1
