-- most. Answers the first messages of the shard, claimed ones included: id and message of each.
local reply = {}
for _, key in ipairs({leases, due}) do
  for _, id in ipairs(redis.call('ZRANGE', key, 0, tonumber(ARGV[4]) - 1)) do
    local body = redis.call('HGET', bodies, id)
    if body then add(reply, id, body) end
  end
end
return answer(false, unpack(reply))
