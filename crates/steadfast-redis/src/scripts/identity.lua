-- ARGV: how the caller identifies records. Answers how those under this prefix are identified: as the first caller did it.
local version = redis.call('HMGET', KEYS[1], 'version')[1]
if not version then
    redis.call('HSET', KEYS[1], 'version', ARGV[1])
    version = ARGV[1]
end
return version
