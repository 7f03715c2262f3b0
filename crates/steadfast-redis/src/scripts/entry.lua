-- Begins every script: reads the record and decides nothing.
--
-- KEYS[1] is the record, a hash of these fields:
--   version      '1'; another layout has another number, and is left alone
--   fingerprint  32 bytes: the hash of the request
--   token        16 bytes: the owner of the claim, now or before its end
--   retention    milliseconds
--   took_over    '1' if the operation may have run before this claim began
--   unknown      '1' once the claim has ended with an unknown outcome
--   record       the response; absent until the operation is done
--
-- A claim lives for its lease plus its retention, an end for its retention. So the rest of a lease
-- is the rest of the key's life minus the retention. Redis's clock is the only one, and a renewal
-- is a PEXPIRE, which a full Redis does not refuse.
--
-- KEYS[2], if present, is the tombstone of the caller's token: the token can no longer claim the
-- key.
local version, fingerprint, token, retention, record, took_over, unknown =
    unpack(redis.call('HMGET', KEYS[1], 'version', 'fingerprint', 'token', 'retention', 'record', 'took_over', 'unknown'))
-- -2: there is no such key. -1: somebody has removed the expiry; a claim then counts as lapsed.
local left = redis.call('PTTL', KEYS[1])
local exists = left ~= -2
local readable = version == '1' and fingerprint and #fingerprint == 32 and retention and string.match(retention, '^%d+$')
local lease_left = readable and token and not unknown and left - retention or 0
-- ARGV[1] is the caller's token, if the script has one.
local held = readable and not record and not unknown and token == ARGV[1]
local ended_as_unknown = readable and not record and unknown and token == ARGV[1]
local known = {version, fingerprint, retention, record, lease_left}
local dead = KEYS[2] and redis.call('EXISTS', KEYS[2]) == 1

-- A full Redis refuses a script whose first write takes room. After a first write that takes none,
-- it allows the rest. This HDEL removes nothing (no such field is ever set), and is never refused.
-- So ends can be recorded, and only new claims are refused.
local function begin_to_write()
    redis.call('HDEL', KEYS[1], 'no such field')
end

local function end_as_unknown()
    begin_to_write()
    redis.call('HSET', KEYS[1], 'unknown', '1')
    redis.call('PEXPIRE', KEYS[1], retention)
end

local function bury(milliseconds)
    begin_to_write()
    redis.call('SET', KEYS[2], '', 'PX', milliseconds)
end

