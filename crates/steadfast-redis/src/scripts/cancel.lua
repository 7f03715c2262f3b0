-- ARGV: token, a tombstone's milliseconds. Ends a claim under which nothing runs, whether it is here or still on its way.
-- Answers 1 if the token wins nothing any more, and 0 if its claim had ended otherwise.
if dead then
    return 1
end
if readable and token == ARGV[1] and not held then
    return 0
end
-- What it took over may have run: that is unknown again.
if held and took_over then
    end_as_unknown()
elseif held then
    redis.call('DEL', KEYS[1])
end
bury(ARGV[2])
return 1
