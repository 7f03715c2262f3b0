-- Locks operations that have something to remove, except those that another process has locked.
-- Without any there is one row, with the time alone.
-- $1 maximum number
WITH clock AS MATERIALIZED (SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now_ms)
SELECT clock.now_ms, o.id, o.version, o.name, o.entry
FROM clock LEFT JOIN LATERAL (
    SELECT id, version, name, entry FROM steadfast_outbox
    WHERE sweep_ms <= clock.now_ms
    ORDER BY sweep_ms, id
    LIMIT $1
    FOR UPDATE SKIP LOCKED
) o ON true
