-- Keeps the keys of a node's channels from expiring.
--
-- ARGV[2] its life, ARGV[3…] channels. Returns {now}.
redis.call('PEXPIRE', channels_of(ARGV[2]), KEPT_MS)
for at = 3, #ARGV do
  local channel = ARGV[at]
  for _, kept in ipairs({ lives_of(channel), entries_of(ARGV[2], channel), users_of(channel) }) do
    redis.call('PEXPIRE', kept, KEPT_MS)
  end
end
return { now }
