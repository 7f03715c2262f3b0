-- Ends a key that a handler's transaction held, in that transaction, beside the business rows.
-- The advisory lock has one owner, but a claim that lapsed and was taken over may have ended after
-- all.
-- A handler whose SQL has ended the transaction is in none, or in another one. Then the setting that
-- the claim has made is gone, and no row is written.
-- $1 id, $2 token, $3 fingerprint, $4 'done' or 'unknown', $5 record, $6 retention in ms
INSERT INTO steadfast_records AS r (id, fingerprint, token, state, record, retention_ms, forget_at)
SELECT $1::bytea, $3::bytea, $2::bytea, $4::text, $5::bytea, $6::bigint, clock_timestamp() + $6::bigint * interval '1 ms'
WHERE current_setting('steadfast.held', true) = 'on'
ON CONFLICT (id) DO UPDATE
SET fingerprint = excluded.fingerprint, token = excluded.token, state = excluded.state, record = excluded.record,
    took_over = false, lease_until = NULL, retention_ms = excluded.retention_ms, forget_at = excluded.forget_at
WHERE r.forget_at <= clock_timestamp()
   OR r.state = 'free'
   OR r.fingerprint = $3
      AND (r.state = 'unknown' OR r.state = 'running' AND r.lease_until <= clock_timestamp())
