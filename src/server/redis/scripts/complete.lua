-- ARGV: token, retention (milliseconds), record. Answers 1 if this is the end that is kept, also if it was kept before.
if readable and record and token == ARGV[1] then
    return 1
end
if not held then
    return 0
end
-- A full Redis refuses to let a script begin to write with a command that takes room, and lets it go on with one. This HDEL
-- removes nothing, and is never refused: what has run can be recorded, and only new claims are turned away.
redis.call('HDEL', KEYS[1], 'record')
redis.call('HSET', KEYS[1], 'record', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
