-- Claims a key, or returns its state, in one statement: a repeat writes nothing.
-- $1 id, $2 token, $3 fingerprint, $4 lease in ms, $5 retention in ms, $6 whether it may take over,
-- $7 the id's advisory lock, combined here with the table's number
WITH
clock AS MATERIALIZED (SELECT clock_timestamp() AS now),
known AS MATERIALIZED (
    SELECT r.state, r.fingerprint, r.record, r.lease_until,
           $2 = ANY (r.tombstones) AND r.tombstones_until > clock.now AS cancelled
    FROM steadfast_records r, clock
    WHERE r.id = $1
      AND ($2 = ANY (r.tombstones) AND r.tombstones_until > clock.now
           OR r.forget_at > clock.now
              AND r.state <> 'free'
              AND NOT (r.fingerprint = $3
                       AND (r.token = $2 AND r.state = 'running'  -- a repeat of this claim succeeds again
                            OR $6 AND r.token <> $2
                               AND (r.state = 'unknown' OR r.state = 'running' AND r.lease_until <= clock.now))))
),
-- Held exclusively by a handler whose transaction holds the key, which no row shows before it ends.
free AS MATERIALIZED (
    SELECT pg_try_advisory_xact_lock_shared($7 # ('steadfast_records'::regclass::oid::bigint << 32)) AS free WHERE NOT EXISTS (SELECT FROM known)
),
won AS (
    INSERT INTO steadfast_records AS r (id, fingerprint, token, state, lease_until, retention_ms, forget_at)
    SELECT $1, $3, $2, 'running', clock.now + $4 * interval '1 ms', $5, clock.now + ($4 + $5) * interval '1 ms'
    FROM clock, free
    WHERE free.free
    ON CONFLICT (id) DO UPDATE
    SET fingerprint = excluded.fingerprint, token = excluded.token, state = excluded.state, record = NULL,
        took_over = r.forget_at > (SELECT now FROM clock) AND r.state <> 'free' AND (r.took_over OR r.token <> $2),
        lease_until = excluded.lease_until, retention_ms = excluded.retention_ms, forget_at = excluded.forget_at
    -- The row may have changed since the first look, so the conditions are checked again.
    WHERE NOT ($2 = ANY (r.tombstones) AND r.tombstones_until > (SELECT now FROM clock))
      AND (r.forget_at <= (SELECT now FROM clock)
           OR r.state = 'free'
           OR r.fingerprint = $3
              AND (r.token = $2 AND r.state = 'running'
                   OR $6 AND r.token <> $2
                      AND (r.state = 'unknown' OR r.state = 'running' AND r.lease_until <= (SELECT now FROM clock))))
    RETURNING 1
)
SELECT EXISTS (SELECT FROM won)                 AS won,
       coalesce(known.cancelled, false)         AS cancelled,
       coalesce((SELECT free FROM free), true)  AS free,
       known.state, known.fingerprint, known.record,
       ceil(extract(epoch FROM known.lease_until - clock.now) * 1000)::bigint AS lease_left_ms
FROM clock LEFT JOIN known ON true
