-- ARGV: token. Ends the claim as unknown. Answers 1 if this is its end, also if it was before.
if ended_as_unknown then
    return 1
end
if not held then
    return 0
end
end_as_unknown()
return 1
