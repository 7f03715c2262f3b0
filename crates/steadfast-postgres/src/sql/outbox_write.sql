-- Writes operations down, each in place of the version that was read. Returns those written: one
-- that has changed meanwhile, or whose identifier or name is there by now, is left alone.
-- $1 the new version, $2 identifiers, $3 versions that were read (NULL: the operation is new),
-- $4 names, $5 origins, $6 states, $7 due times, $8 sweep times, $9 entries
WITH written AS MATERIALIZED (
    SELECT * FROM unnest($2::uuid[], $3::uuid[], $4::text[], $5::text[], $6::text[], $7::bigint[], $8::bigint[], $9::bytea[])
        AS w (id, before, name, origin, state, due_ms, sweep_ms, entry)
    ORDER BY id
),
inserted AS (
    INSERT INTO steadfast_outbox (id, version, name, origin, state, due_ms, sweep_ms, entry)
    SELECT id, $1, name, origin, state, due_ms, sweep_ms, entry FROM written WHERE before IS NULL
    ON CONFLICT DO NOTHING
    RETURNING id
),
updated AS (
    UPDATE steadfast_outbox o
    SET version = $1, state = w.state, due_ms = w.due_ms, sweep_ms = w.sweep_ms, entry = w.entry
    FROM written w
    WHERE o.id = w.id AND o.version = w.before
    RETURNING o.id
)
SELECT id FROM inserted UNION ALL SELECT id FROM updated
