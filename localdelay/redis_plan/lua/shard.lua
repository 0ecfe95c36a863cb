-- ARGV: channel shard token; then what each script says.
local due, leases, bodies, state = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local function text(number) return string.format('%.0f', number) end
local function first(key)
  local found = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
  return found[2] and tonumber(found[2]) or -1
end
local function add(list, ...)
  for i = 1, select('#', ...) do list[#list + 1] = select(i, ...) end
end
local function answer(tell, ...)
  local next_due, next_end = first(due), first(leases)
  if tell then
    local news = {ARGV[2], text(now), text(next_due), text(next_end), ARGV[3]}
    redis.call('PUBLISH', ARGV[1], table.concat(news, ' '))
  end
  return {now, next_due, next_end, redis.call('HLEN', bodies), ...}
end
