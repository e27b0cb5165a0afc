-- Counts who is in a channel.
--
-- ARGV[2] the channel, ARGV[3] entries of dead lives that may be removed
--
-- Returns {now, more, clients, users}: if there is more to be removed, count again.
local channel = ARGV[2]
local lives, has_more = believed(channel, tonumber(ARGV[3]))
local clients = 0
for _, life in ipairs(lives) do clients = clients + redis.call('HLEN', entries_of(life, channel)) end
local users = redis.call('HLEN', users_of(channel))
return { now, has_more and 1 or 0, clients, math.min(users, clients) }
