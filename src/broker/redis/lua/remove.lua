-- Drops the publications of a stream; epoch and top offset stay, and offsets go on from there.
--
-- KEYS[1] the stream, KEYS[2] the meta hash; ARGV[1] this server's run_id or '-'
-- ARGV[2] the channel, where all nodes hear of it, in its place between the publications
local at = look(ARGV[1])
redis.call('DEL', stream)
if at.is_new then
  redis.call('DEL', meta)
else
  redis.call('HSET', meta, 'x', 0)
end
redis.call('PUBLISH', ARGV[2], '\255hub\3')
return at.reset
