-- How a stream proves that it is whole. Shared by all of hubbub's history scripts.
--
-- The meta hash holds: e epoch, o top offset, s the run_id of the server that wrote it, x when the
-- stream is due to be gone (ms of this server's clock; 0: removed on purpose), v and w the newest
-- version and its epoch. The stream holds, under the id <offset>-0, what was published.
-- A stream goes on under its epoch only if everything agrees:
--   * the meta is there: else it was flushed, or evicted alone, and the count is lost;
--   * the newest id is the top offset: else one of the two is older than the other, or was edited;
--   * no id at all only where nothing was published yet, or after x, when expiry (to the same
--     millisecond) or history_remove explains it: earlier, somebody evicted or deleted the stream;
--   * the server is the one that wrote it: a replica that was promoted, or a server that restarted
--     from disk, may lack the end of what was already delivered, and nothing in the data would show it.
-- Otherwise it starts anew, at offset 1 under a new epoch, so that no old position fits.
local stream, meta = KEYS[1], KEYS[2]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- How long epoch and top offset outlive the publications: 30 days. Where nothing was published yet,
-- an hour from the last read: names that somebody only reads must not pile up.
local META_MS, UNUSED_MS = 2592000000, 3600000

-- Doubles print in full up to 2^53.
local function text(number)
  return string.format('%.0f', number)
end

-- '-': unknown, and not compared.
local function server_id(given)
  if given and given ~= '' then return given end
  local info = redis.pcall('INFO', 'server')
  return type(info) == 'string' and info:match('run_id:(%x+)') or '-'
end

-- Unlike any other: no server shows one microsecond twice to one stream.
local function new_epoch(server)
  local hex = redis.sha1hex(table.concat({ time[1], time[2], server, stream }, ' '))
  local letters = {}
  for at = 1, 15, 2 do
    local letter = tonumber(hex:sub(at, at + 1), 16) % 52
    letters[#letters + 1] = string.char(letter < 26 and 97 + letter or 39 + letter)
  end
  return table.concat(letters)
end

-- The stream as it is, or one that starts anew; nothing is written.
local function look(server)
  local m = redis.call('HMGET', meta, 'e', 'o', 's', 'x', 'v', 'w')
  local newest = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
  local epoch, top, wrote = m[1], tonumber(m[2] or ''), m[3] or '-'
  local whole = epoch and top and (server == '-' or wrote == '-' or server == wrote)
  if whole and newest then
    whole = newest[1] == text(top) .. '-0'
  elseif whole then
    whole = top == 0 or now >= (tonumber(m[4] or '') or 0)
  end
  if whole then
    return { epoch = epoch, top = top, server = server == '-' and wrote or server,
      version = m[5] or '', version_epoch = m[6] or '', reset = 0 }
  end
  return { epoch = new_epoch(server), top = 0, server = server, version = '', version_epoch = '',
    is_new = true, reset = (epoch or newest) and 1 or 0 }
end
