-- A node shows that it lives.
--
-- ARGV[2] ms that it is to be believed, ARGV[3] its life, ARGV[4] 'begin', 'go', 'done' or 'end'; ARGV[5…]
-- lives that it had before: it still moves entries from them, unless it is done or ends
--
-- Returns {now, what, before}: what became of the life, and of the last of those before it: 0 nobody knows
-- it, 1 it is believed, 2 it was taken for dead.
local function state(life)
  local score = until_ms(life)
  if not score then return 0 end
  return score > 0 and 1 or 2
end

local life, step = ARGV[3], ARGV[4]
local believed_ms = now + tonumber(ARGV[2])
local own, before = state(life), 0
if step == 'end' then
  redis.call('ZREM', runs, life)
elseif step == 'begin' or own == 1 then
  redis.call('ZADD', runs, believed_ms, life)
end
local is_moving = step == 'begin' or step == 'go'
for at = 5, #ARGV do
  before = state(ARGV[at])
  if before == 1 then redis.call('ZADD', runs, is_moving and believed_ms or 0, ARGV[at]) end
end
redis.call('PEXPIRE', runs, KEPT_MS)
return { now, own, before }
