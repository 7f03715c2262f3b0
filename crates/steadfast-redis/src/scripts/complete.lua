-- ARGV: token, retention (milliseconds), record. Returns 1 if this end is stored, now or by an
-- earlier call.
if readable and record and token == ARGV[1] then
    return 1
end
if not held then
    return 0
end
begin_to_write()
redis.call('HSET', KEYS[1], 'record', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
