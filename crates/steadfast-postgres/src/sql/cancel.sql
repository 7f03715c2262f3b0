-- Ends a claim under which nothing runs, even if the claim has not arrived yet, and keeps the token
-- as a tombstone. A claim that arrives later finds the row, whatever its snapshot shows, and is
-- refused. Returns false if the claim has ended otherwise.
-- $1 id, $2 token, $3 lifetime of a tombstone in ms
WITH clock AS MATERIALIZED (SELECT clock_timestamp() AS now),
cancelled AS (
    INSERT INTO steadfast_records AS r (id, fingerprint, token, state, retention_ms, forget_at, tombstones, tombstones_until)
    SELECT $1, decode(repeat('00', 32), 'hex'), $2, 'free', 0, until, ARRAY[$2::bytea], until
    FROM clock, LATERAL (SELECT clock.now + $3 * interval '1 ms' AS until) AS tombstone
    ON CONFLICT (id) DO UPDATE
    SET state = CASE WHEN r.forget_at <= (SELECT now FROM clock) THEN 'free'
                     WHEN NOT (r.token = $2 AND r.state = 'running') THEN r.state
                     -- The operation that this claim took over may have run, so it is unknown
                     -- again.
                     WHEN r.took_over THEN 'unknown'
                     ELSE 'free' END,
        record = CASE WHEN r.forget_at <= (SELECT now FROM clock) THEN NULL ELSE r.record END,
        lease_until = CASE WHEN r.forget_at <= (SELECT now FROM clock) OR r.token = $2 THEN NULL ELSE r.lease_until END,
        forget_at = CASE WHEN r.forget_at <= (SELECT now FROM clock) THEN excluded.forget_at
                         WHEN NOT (r.token = $2 AND r.state = 'running') THEN r.forget_at
                         WHEN r.took_over THEN (SELECT now FROM clock) + r.retention_ms * interval '1 ms'
                         ELSE excluded.forget_at END,
        tombstones = CASE WHEN r.tombstones_until > (SELECT now FROM clock) THEN array_remove(r.tombstones, $2) ELSE '{}' END
                     || $2::bytea,
        tombstones_until = excluded.tombstones_until
    WHERE r.forget_at <= (SELECT now FROM clock)
       OR r.token <> $2
       OR r.state IN ('running', 'free')
       OR $2 = ANY (r.tombstones) AND r.tombstones_until > (SELECT now FROM clock)
    RETURNING 1
)
SELECT EXISTS (SELECT FROM cancelled)
