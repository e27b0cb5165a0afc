-- Lists a part of the clients that a life has in a channel.
--
-- ARGV[2] the channel, ARGV[3] the life, ARGV[4] the cursor, first '0', ARGV[5] about how many
--
-- Returns {now, cursor, client, value…}: the next cursor; '0': that was the last part.
local page = redis.call('HSCAN', entries_of(ARGV[3], ARGV[2]), ARGV[4], 'COUNT', ARGV[5])
local reply = { now, page[1] }
for _, item in ipairs(page[2]) do reply[#reply + 1] = item end
return reply
