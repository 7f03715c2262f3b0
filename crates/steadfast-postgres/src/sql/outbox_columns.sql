-- Reads every column that the outbox uses. Returns no row, and fails if one is missing.
SELECT id, version, name, origin, state, due_ms, sweep_ms, entry FROM steadfast_outbox WHERE false
