-- most ahead lease; then id and what of each of which there is something to tell.
-- Answers which of these it has not found; then takes, and answers, what is due within `ahead`, and what was
-- claimed by somebody whose lease has ended: id, when it is due and message of each.
local most, ahead, lease = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local lost, back = tell(7, #ARGV, lease)
local taken, reply = {}, {}
if most > 0 then
  taken = redis.call('ZRANGEBYSCORE', leases, '-inf', text(now), 'LIMIT', 0, most)
  local scores = {}
  if #taken < most then
    local range = {'-inf', text(now + ahead), 'WITHSCORES', 'LIMIT', 0, most - #taken}
    local found = redis.call('ZRANGEBYSCORE', due, unpack(range))
    for i = 1, #found, 2 do
      add(taken, found[i])
      scores[#taken] = tonumber(found[i + 1])
    end
  end
  if #taken > 0 then
    local claims, values = {}, redis.call('HMGET', bodies, unpack(taken))
    redis.call('ZREM', due, unpack(taken))
    redis.call('ZREM', leases, unpack(taken))
    for i, id in ipairs(taken) do
      local score = scores[i] or now
      if values[i] then
        add(claims, text(math.max(score, now) + lease), id)
        add(reply, id, score, values[i])
      end
    end
    if #claims > 0 then redis.call('ZADD', leases, unpack(claims)) end
  end
end
return answer(back or #taken > 0, lost, unpack(reply))
