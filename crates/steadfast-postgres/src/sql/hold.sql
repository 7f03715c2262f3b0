-- Holds a key by an advisory lock of this transaction, or says what is known of it. Asked twice: what ended just before the lock
-- was free is seen only by a statement that begins after it.
-- $1 id, $2 the id's advisory lock, made this table's by its number, $3 fingerprint, $4 whether it may take over
WITH
clock AS MATERIALIZED (SELECT clock_timestamp() AS now),
known AS MATERIALIZED (
    SELECT r.state, r.fingerprint, r.record, r.lease_until
    FROM steadfast_records r, clock
    WHERE r.id = $1
      AND r.forget_at > clock.now
      AND r.state <> 'free'
      AND NOT ($4 AND r.fingerprint = $3
               AND (r.state = 'unknown' OR r.state = 'running' AND r.lease_until <= clock.now))
)
SELECT false AS won, false AS cancelled,
       coalesce((SELECT pg_try_advisory_xact_lock($2 # ('steadfast_records'::regclass::oid::bigint << 32)) WHERE NOT EXISTS (SELECT FROM known)), true) AS free,
       known.state, known.fingerprint, known.record,
       ceil(extract(epoch FROM known.lease_until - clock.now) * 1000)::bigint AS lease_left_ms
FROM clock LEFT JOIN known ON true
