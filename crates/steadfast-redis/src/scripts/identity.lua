-- ARGV: the caller's identity version. Returns the version of the records under this prefix, which
-- the first caller sets.
local version = redis.call('HMGET', KEYS[1], 'version')[1]
if not version then
    redis.call('HSET', KEYS[1], 'version', ARGV[1])
    version = ARGV[1]
end
return version
