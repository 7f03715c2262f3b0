-- Returns how many milliseconds it is until an operation is due, or no row.
-- $1 origins that have no room
SELECT greatest(due_ms - floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint, 0)
FROM steadfast_outbox
WHERE due_ms IS NOT NULL AND origin <> ALL ($1::text[])
ORDER BY due_ms
LIMIT 1
