-- ARGV: token. Answers 1 if the claim was the caller's; then it is nobody's, and its outcome is unknown.
if not held then
    return 0
end
redis.call('HDEL', KEYS[1], 'token')
redis.call('PEXPIRE', KEYS[1], retention)
return 1
