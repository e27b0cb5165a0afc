-- Lists who is in a channel.
--
-- ARGV[2] the channel, ARGV[3] entries of dead lives that may be removed, ARGV[4] clients that are listed
-- at once
--
-- Returns {now, more, listed, …}: if there is more to be removed, ask again. listed 1: then clients and
-- their values in turn; 0: they are too many, then the lives whose entries are to be scanned.
local channel = ARGV[2]
local lives, has_more = believed(channel, tonumber(ARGV[3]))
local clients = 0
for _, life in ipairs(lives) do clients = clients + redis.call('HLEN', entries_of(life, channel)) end
local reply = { now, has_more and 1 or 0, clients <= tonumber(ARGV[4]) and 1 or 0 }
for _, life in ipairs(lives) do
  if reply[3] == 0 then
    reply[#reply + 1] = life
  else
    for _, item in ipairs(redis.call('HGETALL', entries_of(life, channel))) do
      reply[#reply + 1] = item
    end
  end
end
return reply
