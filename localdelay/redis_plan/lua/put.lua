-- generation most most_bytes ahead lease room told; so many of what `tell` is told; then id, when, body of each.
-- when: '+' and microseconds from now, or '@' and an instant.
-- Answers a letter for each (W it waits, L it is claimed, D its id is there, F no room), what `tell` has not
-- found, and when each is due. It is told last: without memory the script is refused before it has done anything.
local shut = redis.call('HMGET', state, 'closed', 'bytes')
local first_put = 11 + tonumber(ARGV[10])
if shut[1] and tonumber(ARGV[4]) <= tonumber(shut[1]) then
  local lost, back = tell(11, first_put - 1, tonumber(ARGV[8]))
  return answer(back, 'M', lost)
end
local count, bytes = redis.call('HLEN', bodies), tonumber(shut[2] or 0)
local most, most_bytes = tonumber(ARGV[5]), tonumber(ARGV[6])
local ahead, lease, room = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local was_due, was_end = first(due), first(leases)
local waits, claims, sets, codes, dues, seen, added = {}, {}, {}, {}, {}, {}, 0
for i = first_put, #ARGV, 3 do
  local id, body = ARGV[i], ARGV[i + 2]
  local code, at = 'W', tonumber(string.sub(ARGV[i + 1], 2))
  if string.sub(ARGV[i + 1], 1, 1) == '+' then at = now + at end
  if at < now then at = now end
  if seen[id] or redis.call('HEXISTS', bodies, id) == 1 then
    code = 'D'
  elseif count >= most or bytes + added + #body + 8 > most_bytes then
    code = 'F'
  else
    local into, score = waits, at
    if room > 0 and at <= now + ahead then
      code, room, into, score = 'L', room - 1, claims, at + lease
    end
    add(into, text(score), id)
    add(sets, id, struct.pack('>d', at) .. body)
    seen[id] = true
    count = count + 1
    added = added + #body + 8
  end
  add(codes, code)
  add(dues, at)
end
if #waits > 0 then redis.call('ZADD', due, unpack(waits)) end
if #claims > 0 then redis.call('ZADD', leases, unpack(claims)) end
if #sets > 0 then
  redis.call('HSET', bodies, unpack(sets))
  redis.call('HINCRBY', state, 'bytes', added)
end
local is_news = first(due) ~= was_due or first(leases) ~= was_end
local lost, back = tell(11, first_put - 1, lease)
return answer(is_news or back, table.concat(codes), lost, unpack(dues))
