-- Who is here, over all nodes. What the scripts of presence share.
--
-- A node writes its clients under a *life*: a name that it draws anew for each connection to Redis.
-- ws:presence-runs            lives by the time, of this server's clock, up to which they are believed;
--                             0: its entries are being removed; less: they were, then
-- ws:presence-of:LIFE         the channels that it has clients in
-- ws:presence:{C}             the lives that have clients in channel C
-- ws:presence-at:LIFE:{C}     those clients: '1' if their coming and going is told, else '0', then the
--                             ClientInfo
-- ws:presence-users:{C}       how many clients of any life each user has there
-- With a } in C it is :C instead of {C}; and HUB_REDIS_PREFIX stands before every key. Everything expires
-- by itself where no node is left to do it. Whatever a life has written is undone, entry by entry and once,
-- by whoever finds that it is over: an entry is removed and its leave published in one step.
--
-- KEYS[1] ws:presence-runs, ARGV[1] HUB_REDIS_PREFIX
local runs, prefix = KEYS[1], ARGV[1]
-- Of keys, from when a node last wrote or confirmed them.
local KEPT_MS = 3600000
local JOIN, LEAVE = '\255hub\4j', '\255hub\4l'
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function key(kind, channel)
  if string.find(channel, '}', 1, true) then return prefix .. kind .. ':' .. channel end
  return prefix .. kind .. '{' .. channel .. '}'
end

local function lives_of(channel) return key('ws:presence:', channel) end
local function users_of(channel) return key('ws:presence-users:', channel) end
local function entries_of(life, channel) return key('ws:presence-at:' .. life .. ':', channel) end
local function channels_of(life) return prefix .. 'ws:presence-of:' .. life end

-- Up to when a life is believed; nil: nobody knows it.
local function until_ms(life)
  local score = redis.call('ZSCORE', runs, life)
  return score and tonumber(score)
end

-- As JSON writes it.
local function user_of(value)
  return string.match(value, '^.{"user":"(.-)","client":"') or ''
end

-- Who may not PUBLISH there still has presence.
local function tell(what, channel, value)
  if string.sub(value, 1, 1) == '1' then
    redis.pcall('PUBLISH', prefix .. channel, what .. string.sub(value, 2))
  end
end

-- Removes an entry, and returns its value.
local function remove(life, channel, client)
  local entries = entries_of(life, channel)
  local value = redis.call('HGET', entries, client)
  if not value then return nil end
  redis.call('HDEL', entries, client)
  local users, user = users_of(channel), user_of(value)
  if redis.call('HINCRBY', users, user, -1) <= 0 then redis.call('HDEL', users, user) end
  return value
end

-- After removals: a life that has nobody left in a channel is not there.
local function tidy(life, channel)
  if redis.call('EXISTS', entries_of(life, channel)) == 1 then return false end
  redis.call('SREM', channels_of(life), channel)
  local lives = lives_of(channel)
  redis.call('SREM', lives, life)
  if redis.call('EXISTS', lives) == 0 then redis.call('DEL', users_of(channel)) end
  return true
end

-- Removes at most so many entries that a life which is over has in a channel, and tells of those clients
-- that are in it under no other. Returns how many, and whether these were all.
local function reap(life, channel, most)
  local others = {}
  for _, other in ipairs(redis.call('SMEMBERS', lives_of(channel))) do
    if other ~= life and (until_ms(other) or 0) > now then others[#others + 1] = other end
  end
  if until_ms(life) > 0 then redis.call('ZADD', runs, 0, life) end
  local clients = redis.call('HRANDFIELD', entries_of(life, channel), most)
  for _, client in ipairs(clients) do
    local value, elsewhere = remove(life, channel, client), false
    for _, other in ipairs(others) do
      elsewhere = elsewhere or redis.call('HEXISTS', entries_of(other, channel), client) == 1
    end
    if not elsewhere then tell(LEAVE, channel, value) end
  end
  return #clients, tidy(life, channel)
end

-- The lives that have clients in a channel. What is left there of one that is over is removed, a bounded
-- part at a time: the second result says whether there is more.
local function believed(channel, most)
  local found, has_more = {}, false
  for _, life in ipairs(redis.call('SMEMBERS', lives_of(channel))) do
    local score = until_ms(life)
    if score and score > now then
      found[#found + 1] = life
    elseif score then
      local n, is_all = 0, false
      if most > 0 then n, is_all = reap(life, channel, most) end
      most = most - n
      has_more = has_more or not is_all
    end
  end
  return found, has_more
end
