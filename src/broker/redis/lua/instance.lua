-- A node's heartbeat: claims its instance id, shows that it lives, or gives the id up. Whether somebody
-- else's entry is that of a node that lives is told by how long it has left, by this server's clock.
--
-- KEYS[1] the entry; ARGV[1] this node's run_id; ARGV[2] what it says of itself, JSON;
-- ARGV[3] the entry's life, ms; 0: give it up; ARGV[4] an entry of another run with no more than this
-- left, ms, has missed its renewal: that node is dead
-- Returns {what, left, run_id}: 0 another node holds it, 1 it was ours, 2 it was nobody's; for how long
-- it was still to live; whose it was
local held = redis.call('GET', KEYS[1])
local left = redis.call('PTTL', KEYS[1])
local run = held and held:match('"run_id":"([^"]*)"') or ''
if ARGV[3] == '0' then
  if run == ARGV[1] then redis.call('DEL', KEYS[1]) end
  return {run == ARGV[1] and 1 or 0, left, run}
end
if held and run ~= ARGV[1] and left > tonumber(ARGV[4]) then
  return {0, left, run}
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return {run == ARGV[1] and 1 or 2, left, run}
