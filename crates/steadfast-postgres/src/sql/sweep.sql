-- Deletes what is past its retention. Rows that another sweep has in hand are left to it. $1 how many at most
DELETE FROM steadfast_records
WHERE id IN (
    SELECT id FROM steadfast_records
    WHERE forget_at <= clock_timestamp()
      AND (tombstones_until IS NULL OR tombstones_until <= clock_timestamp())
    ORDER BY forget_at
    LIMIT $1
    FOR UPDATE SKIP LOCKED
)
