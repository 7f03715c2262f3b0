-- Fails if a table or a column of the store is missing, and returns nothing.
SELECT r.id, r.fingerprint, r.token, r.state, r.took_over, r.lease_until, r.retention_ms, r.forget_at, r.record,
       r.tombstones, r.tombstones_until, i.version
FROM steadfast_records r, steadfast_identity i
LIMIT 0;
