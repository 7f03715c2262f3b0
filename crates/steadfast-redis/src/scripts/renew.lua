-- ARGV: token, lease (milliseconds). Returns 1 if the claim is the caller's.
if not held then
    return 0
end
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', ARGV[2] + retention))
return 1
