-- What each of these messages has come to: id and what.
-- what: '-' and its execute-at: it is finished; 'x': cancel it unless another has it; '=': keep its lease;
-- '+' and when it is to be claimed again. Instants are doubles; '=' has one, too, that says nothing. After it
-- may come 8 bytes that say how often it failed.
-- Returns which of these it has not found, and whether there is something to be claimed again.
local function tell(begin, stop, lease)
  local gone, bytes, lost, back = {}, 0, {}, false
  for i = begin, stop, 2 do
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
  return lost, back
end
