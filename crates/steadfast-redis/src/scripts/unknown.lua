-- ARGV: token. Ends the claim as unknown. Returns 1 if this end is stored, now or by an earlier
-- call.
if ended_as_unknown then
    return 1
end
if not held then
    return 0
end
end_as_unknown()
return 1
