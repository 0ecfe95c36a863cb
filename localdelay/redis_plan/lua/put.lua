-- generation most most_bytes ahead lease room; then id, when, body of each.
-- when: '+' and microseconds from now, or '@' and an instant.
-- Answers a letter for each (W it waits, L it is claimed, D its id is there, F no room), and when it is due.
local shut = redis.call('HMGET', state, 'closed', 'bytes')
if shut[1] and tonumber(ARGV[4]) <= tonumber(shut[1]) then return answer(false, 'M') end
local count, bytes = redis.call('HLEN', bodies), tonumber(shut[2] or 0)
local most, most_bytes = tonumber(ARGV[5]), tonumber(ARGV[6])
local ahead, lease, room = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local was_due, was_end = first(due), first(leases)
local waits, claims, sets, codes, dues, seen, added = {}, {}, {}, {}, {}, {}, 0
for i = 10, #ARGV, 3 do
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
return answer(first(due) ~= was_due or first(leases) ~= was_end, table.concat(codes), unpack(dues))
