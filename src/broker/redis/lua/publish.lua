local channel, payload = ARGV[1], ARGV[2]
local size, ttl = tonumber(ARGV[3] or ''), tonumber(ARGV[4] or '')
local tags, version, version_epoch = ARGV[5] or '', ARGV[6] or '', ARGV[7] or ''
local info, deadline = ARGV[8] or '', tonumber(ARGV[9] or '')
local once = KEYS[3]
local IDEMPOTENCY_MS = 300000

if not (payload and size and ttl and size >= 0 and (size == 0 or ttl >= 1)) then
  return redis.error_reply('ERR expected: channel payload history_size history_ttl_ms')
end
if version:find('%D') then
  return redis.error_reply('ERR expected a version of decimal digits')
end
if deadline and now > deadline then
  return { now, 0, 0, '', 0 }
end
if once then
  local before = redis.call('GET', once)
  if before then
    local offset, epoch = before:match('^(%d+):(%a*)$')
    return { now, 2, tonumber(offset), epoch, 0 }
  end
end

local function part(bytes)
  return struct.pack('>I4', #bytes) .. bytes
end

-- Delivers; an error is the server's own, of which nothing else must come. Comes after the first
-- write, which a server without memory refuses, and before those that say that it was published.
local function publish(message)
  local n = redis.pcall('PUBLISH', channel, message)
  return type(n) == 'table' and n or nil
end

if size == 0 then
  local message = payload
  if #tags + #info > 0 or payload:byte(1) == 255 then
    message = '\255hub\1' .. part(info) .. part(tags) .. payload
  end
  -- A replica takes a PUBLISH, and keeps it to itself; what it refuses is a write, even of nothing.
  local written = redis.pcall('DEL', stream .. ':none')
  if type(written) == 'table' and written.err:find('READONLY', 1, true) then
    return redis.error_reply('READONLY this is a replica')
  end
  if once then redis.call('SET', once, '0:', 'PX', IDEMPOTENCY_MS) end
  local failed = publish(message)
  if failed and once then redis.call('DEL', once) end
  return failed or { now, 1, 0, '', 0 }
end

-- Decimals of any length: a double would take neighbours for equal.
local function is_newer(new, old)
  new, old = new:gsub('^0+', ''), old:gsub('^0+', '')
  if #new ~= #old then return #new > #old end
  return new > old
end

version = version:gsub('^0+', '')
local at = look(server_id(ARGV[10]))
if version ~= '' and at.version ~= '' and at.version_epoch == version_epoch
  and not is_newer(version, at.version) then
  return { now, 3, at.top, at.epoch, at.reset }
end

local offset = text(at.top + 1)
local message = '\255hub\2' .. struct.pack('>I8', at.top + 1) .. at.epoch
  .. part(info) .. part(tags) .. part(version) .. payload
redis.call('HSET', meta, 't', text(now))
local failed = publish(message)
if failed then return failed end
if version ~= '' then at.version, at.version_epoch = version, version_epoch end
if at.is_new then redis.call('DEL', stream) end
local due = text(now + ttl)
redis.call('HSET', meta, 'e', at.epoch, 'o', offset, 's', at.server, 'x', due,
  'v', at.version, 'w', at.version_epoch)
redis.call('PEXPIRE', meta, text(ttl + META_MS))
redis.call('XADD', stream, 'MAXLEN', '=', text(size), offset .. '-0', 'p', message)
redis.call('PEXPIREAT', stream, due)
if once then redis.call('SET', once, offset .. ':' .. at.epoch, 'PX', IDEMPOTENCY_MS) end
return { now, 1, at.top + 1, at.epoch, at.reset }
