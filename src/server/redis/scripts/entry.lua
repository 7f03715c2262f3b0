-- Opens every script: reads what is kept under KEYS[1], and decides nothing.
--
-- The hash has these fields:
--   version      '1'; another layout has another number, and is left alone
--   fingerprint  32 bytes: what the request is
--   token        16 bytes: whose claim it is; absent once the claim was abandoned
--   retention    milliseconds
--   record       the answer; absent until the operation is done
--
-- A claim lives for its lease and its retention, an end for its retention. So what is left of a lease is what is left of the
-- key, less the retention: Redis's clock is the only one, and a renewal is a PEXPIRE, which a full Redis does not refuse.
local version, fingerprint, token, retention, record =
    unpack(redis.call('HMGET', KEYS[1], 'version', 'fingerprint', 'token', 'retention', 'record'))
-- -2: there is no such key. -1: somebody has taken its expiry away, and a claim has lapsed.
local left = redis.call('PTTL', KEYS[1])
local exists = left ~= -2
local readable = version == '1' and fingerprint and #fingerprint == 32 and retention and string.match(retention, '^%d+$')
local lease_left = readable and token and left - retention or 0
-- ARGV[1] is the caller's token, where there is one.
local held = readable and not record and token == ARGV[1]
local known = {version, fingerprint, retention, record, lease_left}

