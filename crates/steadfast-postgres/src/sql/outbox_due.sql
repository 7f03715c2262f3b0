-- Locks operations that are due, those first that have been due for longest, except those that
-- another worker has locked. Without any there is one row, with the time alone.
-- $1 origins that have no room, $2 maximum number
WITH clock AS MATERIALIZED (SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now_ms)
SELECT clock.now_ms, o.id, o.version, o.name, o.entry
FROM clock LEFT JOIN LATERAL (
    SELECT id, version, name, entry FROM steadfast_outbox
    WHERE due_ms <= clock.now_ms AND origin <> ALL ($1::text[])
    ORDER BY due_ms, id
    LIMIT $2
    FOR UPDATE SKIP LOCKED
) o ON true
