-- most ahead lease; then id and what of each of which there is something to tell.
-- what: '-' and its execute-at: it is finished; 'x': cancel it unless another has it; '=': keep its lease;
-- '+' and when it is to be claimed again. Instants are doubles; '=' has one, too, that says nothing. After it
-- may come 8 bytes that say how often it failed.
-- Answers which of these it has not found; then takes, and answers, what is due within `ahead`, and what was
-- claimed by somebody whose lease has ended: id, when it is due and message of each.
local most, ahead, lease = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local gone, bytes, lost, back = {}, 0, {}, false
for i = 7, #ARGV, 2 do
  local id, body = ARGV[i], redis.call('HGET', bodies, ARGV[i])
  local what = ARGV[i + 1]
  local how, instant, note = string.sub(what, 1, 1), string.sub(what, 2, 9), string.sub(what, 10)
  if how == '-' or how == 'x' then
    local held = how == 'x' and tonumber(redis.call('ZSCORE', leases, id) or 0) > now
    if body and not held and (how == 'x' or string.sub(body, 1, 8) == instant) then
      bytes = bytes + #body
      add(gone, id)
    else
      add(lost, id)
    end
  elseif redis.call('ZREM', leases, id) == 0 or not body then
    add(lost, id)
  else
    if note ~= '' then
      redis.call('HSET', bodies, id, string.sub(body, 1, 8) .. note .. string.sub(body, 17))
    end
    if how == '=' then
      redis.call('ZADD', leases, text(now + lease), id)
    else
      redis.call('ZADD', due, text(struct.unpack('>d', instant)), id)
      back = true
    end
  end
end
if #gone > 0 then
  redis.call('ZREM', leases, unpack(gone))
  redis.call('ZREM', due, unpack(gone))
  redis.call('HDEL', bodies, unpack(gone))
  redis.call('HINCRBY', state, 'bytes', -bytes)
end
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
