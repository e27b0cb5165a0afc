-- Removes a bounded part of what is left of lives that are over.
--
-- ARGV[2] entries at the most, ARGV[3] ms that it is remembered that a life was removed
--
-- Returns {now, more, n}: whether there is more, and how many entries were removed.
local left = tonumber(ARGV[2])
local n_removed, n_steps = 0, 0
while left > n_removed + n_steps do
  local life = redis.call('ZRANGEBYSCORE', runs, 0, now, 'LIMIT', 0, 1)[1]
  if not life then
    redis.call('ZREMRANGEBYSCORE', runs, '(' .. -(now - tonumber(ARGV[3])), '(0')
    return { now, 0, n_removed }
  end
  local channel = redis.call('SRANDMEMBER', channels_of(life))
  n_steps = n_steps + 1
  if channel then
    n_removed = n_removed + reap(life, channel, left - n_removed)
  else
    redis.call('ZADD', runs, -now, life)
  end
end
return { now, 1, n_removed }
