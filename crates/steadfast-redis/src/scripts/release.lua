-- ARGV: token, a tombstone's milliseconds. Answers 1 if the claim was the caller's, also if it was released before; then the key is as
-- if it had never been claimed.
if dead then
    return 1
end
if not held then
    return 0
end
redis.call('DEL', KEYS[1])
bury(ARGV[2])
return 1
