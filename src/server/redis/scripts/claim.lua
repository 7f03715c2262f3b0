-- ARGV: token, fingerprint, retention, lease and retention together (milliseconds), '1' to take over what is unknown.
-- Answers nil if the key is the caller's now, and what is known of it if not.
if exists and not held then
    local unknown = readable and not record and lease_left <= 0
    if not (unknown and ARGV[5] == '1' and fingerprint == ARGV[2]) then
        return known
    end
end
redis.call('HSET', KEYS[1], 'version', '1', 'fingerprint', ARGV[2], 'token', ARGV[1], 'retention', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return false
