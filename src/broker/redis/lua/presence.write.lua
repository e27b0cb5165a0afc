-- Writes what changed among a node's clients.
--
-- ARGV[2] its life, ARGV[3] how many it had before from which entries are moved, then these, and then for
-- each change four: what, channel, client, value
-- what: e it is here; j the same, and it came just now, which is told; l it went; f the same, and told
-- even if it isn't found
--
-- Returns {now, done}: done is 0 if the life was taken for dead, and nothing was written.
local life, first = ARGV[2], 4 + ARGV[3]
if (until_ms(life) or 0) <= 0 then return { now, 0 } end

local function enter(what, channel, client, value)
  local entries = entries_of(life, channel)
  local is_new, moved = redis.call('HSET', entries, client, value) == 1, {}
  for at = 4, first - 1 do
    if redis.call('HDEL', entries_of(ARGV[at], channel), client) == 1 then
      moved[#moved + 1] = ARGV[at]
    end
  end
  -- Each entry counts for its user.
  local n = (is_new and 1 or 0) - #moved
  if n ~= 0 then redis.call('HINCRBY', users_of(channel), user_of(value), n) end
  if is_new and #moved == 0 and what == 'j' then tell(JOIN, channel, value) end
  if is_new and redis.call('HLEN', entries) == 1 then
    local of, lives = channels_of(life), lives_of(channel)
    redis.call('SADD', of, channel)
    redis.call('SADD', lives, life)
    for _, kept in ipairs({ of, lives, entries, users_of(channel) }) do
      redis.call('PEXPIRE', kept, KEPT_MS)
    end
  end
  for _, old in ipairs(moved) do tidy(old, channel) end
end

local function leave(what, channel, client, value)
  local found
  for at = first - 1, 3, -1 do
    local of = at == 3 and life or ARGV[at]
    local removed = remove(of, channel, client)
    if removed then tidy(of, channel) end
    found = removed or found
  end
  if found or what == 'f' then tell(LEAVE, channel, found or value) end
end

for at = first, #ARGV, 4 do
  local what = ARGV[at]
  local change = (what == 'e' or what == 'j') and enter or leave
  change(what, ARGV[at + 1], ARGV[at + 2], ARGV[at + 3])
end
return { now, 1 }
