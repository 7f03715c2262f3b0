-- The records of idempotency keys. The table is found by the connection's search_path, so it can live in any schema.
CREATE TABLE IF NOT EXISTS steadfast_records (
    id               bytea       PRIMARY KEY CHECK (octet_length(id) = 32),          -- SHA-256 of scope and key: no raw key is stored
    fingerprint      bytea       NOT NULL CHECK (octet_length(fingerprint) = 32),    -- SHA-256 of method, host, target and body
    token            bytea       NOT NULL CHECK (octet_length(token) = 16),          -- the claim that holds or held the key
    state            text        NOT NULL CHECK (state IN ('running', 'done', 'unknown', 'free')),
    took_over        boolean     NOT NULL DEFAULT false,                             -- the operation may have run before this claim began
    lease_until      timestamptz,                                                    -- of a running claim: after it, nobody knows
    retention_ms     bigint      NOT NULL,
    forget_at        timestamptz NOT NULL,                                           -- after it, nothing is known of the key
    record           bytea,                                                          -- of an operation that is done: its answer
    tombstones       bytea[]     NOT NULL DEFAULT '{}',                              -- tokens that were released or cancelled
    tombstones_until timestamptz,                                                    -- after it, they are forgotten
    CHECK ((state = 'running') = (lease_until IS NOT NULL)),
    CHECK ((state = 'done') = (record IS NOT NULL))
);
CREATE INDEX IF NOT EXISTS steadfast_records_forget_at ON steadfast_records (forget_at);
-- How the records are identified: a build that does it otherwise could not recognise what has run, and refuses to start.
CREATE TABLE IF NOT EXISTS steadfast_identity (
    is_only_row  boolean     PRIMARY KEY DEFAULT true CHECK (is_only_row),
    version      integer     NOT NULL
);
INSERT INTO steadfast_identity (version) SELECT 1 WHERE NOT EXISTS (SELECT FROM steadfast_records) ON CONFLICT DO NOTHING;
