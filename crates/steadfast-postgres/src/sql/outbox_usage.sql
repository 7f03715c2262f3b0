-- Returns the number of operations, and the size of their entries.
SELECT count(*), coalesce(sum(octet_length(entry)), 0)::bigint FROM steadfast_outbox
