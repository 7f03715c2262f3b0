-- ARGV: token. Answers 1 if the claim was the caller's; then the key is as if it had never been claimed.
if not held then
    return 0
end
redis.call('DEL', KEYS[1])
return 1
