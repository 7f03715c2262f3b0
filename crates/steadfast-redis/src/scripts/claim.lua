-- ARGV: token, fingerprint, retention, lease plus retention (both in milliseconds), '1' to take
-- over an unknown operation. Returns nil if the caller has the key, 0 if its token can no longer
-- claim it, and otherwise the state of the key.
if dead then
    return 0
end
if exists then
    local unknown = readable and not record and lease_left <= 0
    local takes_over = unknown and ARGV[5] == '1' and token ~= ARGV[1]
    if not ((held or takes_over) and fingerprint == ARGV[2]) then
        return known
    end
    if takes_over then
        took_over = '1'
    end
end
redis.call('HSET', KEYS[1], 'version', '1', 'fingerprint', ARGV[2], 'token', ARGV[1], 'retention', ARGV[3])
redis.call('HDEL', KEYS[1], 'unknown')
if took_over then
    redis.call('HSET', KEYS[1], 'took_over', '1')
end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return false
