-- Returns the time, and the operations of these identifiers or names. One that is found both ways
-- is returned twice. Without any there is one row, with the time alone.
-- $1 identifiers, $2 names
WITH clock AS MATERIALIZED (SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now_ms)
SELECT clock.now_ms, o.id, o.version, o.name, o.entry
FROM clock LEFT JOIN (
    SELECT id, version, name, entry FROM steadfast_outbox WHERE id = ANY ($1::uuid[])
    UNION ALL
    SELECT id, version, name, entry FROM steadfast_outbox WHERE name = ANY ($2::text[])
) o ON true
