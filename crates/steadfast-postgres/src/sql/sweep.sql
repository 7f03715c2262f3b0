-- Deletes expired records, except rows that another sweep has locked. $1 maximum number of rows
DELETE FROM steadfast_records
WHERE id IN (
    SELECT id FROM steadfast_records
    WHERE forget_at <= clock_timestamp()
      AND (tombstones_until IS NULL OR tombstones_until <= clock_timestamp())
    ORDER BY forget_at
    LIMIT $1
    FOR UPDATE SKIP LOCKED
)
