-- The records of idempotency keys. The connection's search_path finds the table, so it can be in
-- any schema.
CREATE TABLE IF NOT EXISTS steadfast_records (
    id               bytea       PRIMARY KEY CHECK (octet_length(id) = 32),          -- SHA-256 of scope and key: no raw key is stored
    fingerprint      bytea       NOT NULL CHECK (octet_length(fingerprint) = 32),    -- SHA-256 of method, host, target and body
    token            bytea       NOT NULL CHECK (octet_length(token) = 16),          -- the owner of the claim, now or before its end
    state            text        NOT NULL CHECK (state IN ('running', 'done', 'unknown', 'free')),
    took_over        boolean     NOT NULL DEFAULT false,                             -- the operation may have run before this claim began
    lease_until      timestamptz,                                                    -- end of a running claim's lease; unknown afterwards
    retention_ms     bigint      NOT NULL,
    forget_at        timestamptz NOT NULL,                                           -- end of retention; the key is new afterwards
    record           bytea,                                                          -- the response of a completed operation
    tombstones       bytea[]     NOT NULL DEFAULT '{}',                              -- tokens that were released or cancelled
    tombstones_until timestamptz,                                                    -- the tombstones expire then
    CHECK ((state = 'running') = (lease_until IS NOT NULL)),
    CHECK ((state = 'done') = (record IS NOT NULL))
);
CREATE INDEX IF NOT EXISTS steadfast_records_forget_at ON steadfast_records (forget_at);
-- The identity version of the records. A build with another version would not find them, and
-- refuses the table.
CREATE TABLE IF NOT EXISTS steadfast_identity (
    is_only_row  boolean     PRIMARY KEY DEFAULT true CHECK (is_only_row),
    version      integer     NOT NULL
);
INSERT INTO steadfast_identity (version) SELECT 1 WHERE NOT EXISTS (SELECT FROM steadfast_records) ON CONFLICT DO NOTHING;
