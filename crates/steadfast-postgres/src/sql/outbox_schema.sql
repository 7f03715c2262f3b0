-- The operations of an outbox. The connection's search_path finds the table, so it can be in any
-- schema. Times are milliseconds since the Unix epoch, by the database's clock.
CREATE TABLE IF NOT EXISTS steadfast_outbox (
    id       uuid   PRIMARY KEY,
    version  uuid   NOT NULL,  -- random, and another one after each change
    name     text   UNIQUE,    -- the submitter's name for it
    origin   text   NOT NULL,  -- scheme, host and port that it is sent to
    state    text   NOT NULL,  -- for people: waiting, running, held, answer, rejected or unknown
    due_ms   bigint,           -- when a worker may take it
    sweep_ms bigint,           -- when there is something to remove
    entry    bytea  NOT NULL   -- all of it, with a checksum
);
CREATE INDEX IF NOT EXISTS steadfast_outbox_due ON steadfast_outbox (due_ms, id) WHERE due_ms IS NOT NULL;
CREATE INDEX IF NOT EXISTS steadfast_outbox_sweep ON steadfast_outbox (sweep_ms, id) WHERE sweep_ms IS NOT NULL;
