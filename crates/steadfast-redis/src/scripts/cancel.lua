-- ARGV: token, lifetime of a tombstone (milliseconds). Ends a claim under which nothing runs, even
-- if the claim has not arrived yet. Returns 1 if the token can no longer claim the key, and 0 if
-- its claim has ended otherwise.
if dead then
    return 1
end
if readable and token == ARGV[1] and not held then
    return 0
end
-- The operation that this claim took over may have run, so it is unknown again.
if held and took_over then
    end_as_unknown()
elseif held then
    redis.call('DEL', KEYS[1])
end
bury(ARGV[2])
return 1
