-- Reads one step of a stream, and makes its epoch if it has none.
--
-- KEYS[1] the stream, KEYS[2] the meta hash
-- ARGV[1] this server's run_id or '-', ARGV[2] the epoch that the stream must have, or empty
-- ARGV[3] 'f' forward or 'r' reverse, ARGV[4] the offset to go on from, exclusive, or empty
-- ARGV[5] publications at the most, ARGV[6] bytes after which a step ends
--
-- Returns {top, epoch, reset, more, message…}: more is 1 if the step ended before the stream or the
-- limit did. Another epoch than asked for: no messages.
local at = look(ARGV[1])
if at.is_new then
  redis.call('HSET', meta, 'e', at.epoch, 'o', 0, 's', at.server, 'x', 0, 'v', '', 'w', '')
  redis.call('DEL', stream)
end
if at.top == 0 then redis.call('PEXPIRE', meta, UNUSED_MS) end
local reply = { at.top, at.epoch, at.reset, 0 }
local left, step_bytes = tonumber(ARGV[5]), tonumber(ARGV[6])
if ARGV[2] ~= '' and ARGV[2] ~= at.epoch then return reply end

local command, from, to = 'XRANGE', '-', '+'
if ARGV[3] == 'r' then command, from, to = 'XREVRANGE', '+', '-' end
if ARGV[4] ~= '' then from = '(' .. ARGV[4] .. '-0' end
local bytes, count = 0, 1
-- Ever more at once, as long as they are small: a page of the largest ones is no surprise.
while left > 0 do
  local wanted = math.min(count, left)
  local page = redis.call(command, stream, from, to, 'COUNT', wanted)
  for _, entry in ipairs(page) do
    reply[#reply + 1] = entry[2][2]
    bytes = bytes + #entry[2][2]
    from = '(' .. entry[1]
  end
  left = left - #page
  if #page < wanted then break end
  if bytes >= step_bytes and left > 0 then
    reply[4] = 1
    break
  end
  count = math.min(count * 2, 64)
end
return reply
