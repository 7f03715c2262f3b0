-- ARGV: token, lifetime of a tombstone (milliseconds). Returns 1 if the claim was the caller's, now
-- or at an earlier release. The key is then as if it had never been claimed.
if dead then
    return 1
end
if not held then
    return 0
end
redis.call('DEL', KEYS[1])
bury(ARGV[2])
return 1
