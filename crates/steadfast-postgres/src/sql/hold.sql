-- Holds a key by an advisory lock of this transaction, or returns its state.
-- Runs twice: only a statement that begins after the lock is free sees an end that was written just
-- before.
-- $1 id, $2 the id's advisory lock, combined here with the table's number, $3 fingerprint,
-- $4 whether it may take over
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
