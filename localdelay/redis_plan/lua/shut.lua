-- generation. Closes the shard to puts of instances that do not know of it yet.
local shut = redis.call('HGET', state, 'closed')
if not shut or tonumber(shut) < tonumber(ARGV[4]) then redis.call('HSET', state, 'closed', ARGV[4]) end
return answer(false)
