-- Leaves operations alone that cannot be read: they would be found again at once, for ever.
-- $1 identifiers
UPDATE steadfast_outbox SET due_ms = NULL, sweep_ms = NULL WHERE id = ANY ($1::uuid[])
