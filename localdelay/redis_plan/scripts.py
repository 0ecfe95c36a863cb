"""The scripts. Each is atomic, and touches the four keys of one shard (or the layout key) and nothing else.

A shard has four keys:

    due     sorted set: ids that wait; score: when, in microseconds of Redis's own TIME
    leases  sorted set: ids that an instance has claimed; score: until when the claim holds
    bodies  hash: id to message, of both
    state   hash: bytes of all bodies, and the generation in which the shard was closed to puts

What others must know goes out as news on one channel: `shard time next-due next-end token`, which says when
the first message of the shard is due and when its first lease ends, at that time; -1 where there is none.

What is removed is named by its id and its execute-at: an instance that comes late, for it was frozen, must
not remove another message that was put under the same id meanwhile.

A Redis that is out of memory refuses a write that may take more, unless the script has written already; so
what claims, confirms and gives back begins with a removal. Only putting is refused.
"""

from __future__ import annotations

from hashlib import sha1

import attrs

_COMMON = """
local due, leases, bodies, state = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local function text(number) return string.format('%.0f', number) end
local function first(key)
  local found = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
  return found[2] and tonumber(found[2]) or -1
end
local function tell(channel, shard, token, next_due, next_end)
  local news = shard .. ' ' .. text(now) .. ' ' .. text(next_due) .. ' ' .. text(next_end) .. ' ' .. token
  redis.call('PUBLISH', channel, news)
end
local function remove(pairs, from, to)
  local bytes, found = 0, {}
  for i = from, to, 2 do
    local id, body = pairs[i], redis.call('HGET', bodies, pairs[i])
    if body and (pairs[i + 1] == '' or string.sub(body, 1, 8) == struct.pack('>d', pairs[i + 1])) then
      bytes = bytes + #body
      found[#found + 1] = id
    end
  end
  if #found > 0 then
    redis.call('ZREM', leases, unpack(found))
    redis.call('ZREM', due, unpack(found))
    redis.call('HDEL', bodies, unpack(found))
    redis.call('HINCRBY', state, 'bytes', -bytes)
  end
  return #found
end
"""

_PUT = """
-- ARGV: channel shard token generation most most_bytes ahead lease room; then id, when, new, body of each.
-- when: '+' and microseconds from now, or '@' and an instant. new: '1' where the id may be there already.
local shut = redis.call('HMGET', state, 'closed', 'bytes')
if shut[1] and tonumber(ARGV[4]) <= tonumber(shut[1]) then return {now, -1, -1, 0, 'M'} end
local count, bytes = redis.call('HLEN', bodies), tonumber(shut[2] or 0)
local most, most_bytes = tonumber(ARGV[5]), tonumber(ARGV[6])
local ahead, lease, room = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local next_due, next_end = first(due), first(leases)
local was_due, was_end = next_due, next_end
local waits, claims, sets, codes, reply, seen, added = {}, {}, {}, {}, {}, {}, 0
for i = 10, #ARGV, 4 do
  local id, body = ARGV[i], ARGV[i + 3]
  local code, at = 'W', tonumber(string.sub(ARGV[i + 1], 2))
  if string.sub(ARGV[i + 1], 1, 1) == '+' then at = now + at end
  if at < now then at = now end
  if ARGV[i + 2] == '1' and (seen[id] or redis.call('HEXISTS', bodies, id) == 1) then
    code = 'D'
  elseif count >= most or bytes + #body + 8 > most_bytes then
    code = 'F'
  else
    if room > 0 and ahead > 0 and at <= now + ahead then
      code = 'L'
      room = room - 1
      claims[#claims + 1] = text(at + lease)
      claims[#claims + 1] = id
      if next_end < 0 or at + lease < next_end then next_end = at + lease end
    else
      waits[#waits + 1] = text(at)
      waits[#waits + 1] = id
      if next_due < 0 or at < next_due then next_due = at end
    end
    sets[#sets + 1] = id
    sets[#sets + 1] = struct.pack('>d', at) .. body
    seen[id] = true
    count = count + 1
    bytes = bytes + #body + 8
    added = added + #body + 8
  end
  codes[#codes + 1] = code
  reply[#reply + 1] = at
end
if #waits > 0 then redis.call('ZADD', due, unpack(waits)) end
if #claims > 0 then redis.call('ZADD', leases, unpack(claims)) end
if #sets > 0 then
  redis.call('HSET', bodies, unpack(sets))
  redis.call('HINCRBY', state, 'bytes', added)
end
if next_due ~= was_due or next_end ~= was_end then
  tell(ARGV[1], ARGV[2], ARGV[3], next_due, next_end)
end
return {now, next_due, next_end, count, table.concat(codes), unpack(reply)}
"""

_TAKE = """
-- ARGV: channel shard token most ahead lease; then id and execute-at of what is confirmed.
-- Takes what is due within `ahead`, and what was claimed by somebody whose lease has ended.
local gone = 0
if #ARGV > 6 then gone = remove(ARGV, 7, #ARGV) end
local most, ahead, lease = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local ids = {}
if most > 0 then
  ids = redis.call('ZRANGEBYSCORE', leases, '-inf', text(now), 'LIMIT', 0, most)
  local expired = #ids
  local scores = {}
  if expired < most then
    local range = {'ZRANGEBYSCORE', due, '-inf', text(now + ahead), 'WITHSCORES', 'LIMIT', 0, most - expired}
    local found = redis.call(unpack(range))
    for i = 1, #found, 2 do
      ids[#ids + 1] = found[i]
      scores[#ids] = tonumber(found[i + 1])
    end
  end
  if #ids > 0 then
    local claims = {}
    for i, id in ipairs(ids) do
      claims[2 * i - 1] = text(math.max(scores[i] or now, now) + lease)
      claims[2 * i] = id
    end
    redis.call('ZREM', due, unpack(ids))
    redis.call('ZADD', leases, unpack(claims))
    local values = redis.call('HMGET', bodies, unpack(ids))
    local reply = {}
    for i, id in ipairs(ids) do
      reply[3 * i - 2] = id
      reply[3 * i - 1] = scores[i] or now
      reply[3 * i] = values[i]
      if not values[i] then redis.call('ZREM', leases, id) end
    end
    ids = reply
  end
end
local next_due, next_end = first(due), first(leases)
if #ids > 0 then tell(ARGV[1], ARGV[2], ARGV[3], next_due, next_end) end
return {now, next_due, next_end, redis.call('HLEN', bodies), unpack(ids)}
"""

_CONFIRM = """
-- ARGV: id and execute-at of each.
remove(ARGV, 1, #ARGV)
return {now, first(due), first(leases), redis.call('HLEN', bodies)}
"""

_RETURN = """
-- ARGV: channel shard token lease; then id, wait, note of each.
-- wait: '' for when it was due, '+' and microseconds from now, or '=' to keep the lease. note: '' for none.
local lease, told = tonumber(ARGV[4]), false
for i = 5, #ARGV, 3 do
  local id, wait, note = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  if redis.call('ZREM', leases, id) == 1 then
    local body = redis.call('HGET', bodies, id)
    if body then
      if note ~= '' then
        redis.call('HSET', bodies, id, string.sub(body, 1, 8) .. note .. string.sub(body, 17))
      end
      if wait == '=' then
        redis.call('ZADD', leases, text(now + lease), id)
      elseif wait == '' then
        redis.call('ZADD', due, text(struct.unpack('>d', body)), id)
      else
        redis.call('ZADD', due, text(now + tonumber(string.sub(wait, 2))), id)
      end
      told = told or wait ~= '='
    end
  end
end
local next_due, next_end = first(due), first(leases)
if told then tell(ARGV[1], ARGV[2], ARGV[3], next_due, next_end) end
return {now, next_due, next_end, redis.call('HLEN', bodies)}
"""

_RENEW = """
-- ARGV: lease; then ids. Those whose lease has gone to nobody get it again.
local claims, ids = {}, {}
for i = 2, #ARGV do
  if redis.call('ZSCORE', leases, ARGV[i]) then
    claims[#claims + 1] = text(now + tonumber(ARGV[1]))
    claims[#claims + 1] = ARGV[i]
    ids[#ids + 1] = ARGV[i]
  end
end
if #ids > 0 then
  redis.call('ZREM', leases, unpack(ids))
  redis.call('ZADD', leases, unpack(claims))
end
return {now, first(due), first(leases), redis.call('HLEN', bodies), unpack(ids)}
"""

_CANCEL = """
-- ARGV: id and execute-at, which is '' where the caller has not claimed it.
-- 1: it waited, its lease had ended, or it was the caller's; 0: it is another's; -1: there is none.
local found = -1
if redis.call('HEXISTS', bodies, ARGV[1]) == 1 then
  local claimed = redis.call('ZSCORE', leases, ARGV[1])
  found = 0
  if ARGV[2] ~= '' or not claimed or tonumber(claimed) <= now then found = remove(ARGV, 1, 2) end
end
return {now, first(due), first(leases), redis.call('HLEN', bodies), found}
"""

_SHUT = """
-- ARGV: generation. Closes the shard to puts of instances that do not know of it yet.
local shut = redis.call('HGET', state, 'closed')
if not shut or tonumber(shut) < tonumber(ARGV[1]) then redis.call('HSET', state, 'closed', ARGV[1]) end
return {now, first(due), first(leases), redis.call('HLEN', bodies)}
"""

_LOOK = """
-- ARGV: most. The first messages of the shard, claimed ones included.
local ids = {}
local reply = {}
for _, key in ipairs({leases, due}) do
  local found = redis.call('ZRANGE', key, 0, tonumber(ARGV[1]) - 1)
  for i = 1, #found do ids[#ids + 1] = found[i] end
end
for i, id in ipairs(ids) do
  reply[2 * i - 1] = id
  reply[2 * i] = redis.call('HGET', bodies, id)
end
return {now, first(due), first(leases), redis.call('HLEN', bodies), unpack(reply)}
"""

_LAYOUT = """
-- KEYS: layout. ARGV: channel generation shards top former; and the generation that must be there, or ''.
local there = redis.call('HGET', KEYS[1], 'generation')
if (there or '') ~= ARGV[6] then return 0 end
redis.call('HSET', KEYS[1], 'generation', ARGV[2], 'shards', ARGV[3], 'top', ARGV[4], 'former', ARGV[5])
redis.call('PUBLISH', ARGV[1], 'layout')
return 1
"""


@attrs.frozen
class Script:
    """A script, and the name that Redis knows it by."""

    text: bytes = attrs.field(repr=False)
    digest: bytes


def _script(text: str) -> Script:
    code = text.encode()
    return Script(code, sha1(code, usedforsecurity=False).hexdigest().encode())


PUT = _script(_COMMON + _PUT)
TAKE = _script(_COMMON + _TAKE)
CONFIRM = _script(_COMMON + _CONFIRM)
RETURN = _script(_COMMON + _RETURN)
RENEW = _script(_COMMON + _RENEW)
CANCEL = _script(_COMMON + _CANCEL)
SHUT = _script(_COMMON + _SHUT)
LOOK = _script(_COMMON + _LOOK)
LAYOUT = _script(_LAYOUT)
ALL = (PUT, TAKE, CONFIRM, RETURN, RENEW, CANCEL, SHUT, LOOK, LAYOUT)
