-- Releases the key and keeps the token as a tombstone. A repeat returns the same result.
-- $1 id, $2 token, $3 lifetime of a tombstone in ms
WITH released AS (
    UPDATE steadfast_records
    SET state = 'free', took_over = false, lease_until = NULL,
        forget_at = clock_timestamp() + $3 * interval '1 ms',
        tombstones = CASE WHEN tombstones_until > clock_timestamp() THEN tombstones ELSE '{}' END || $2::bytea,
        tombstones_until = clock_timestamp() + $3 * interval '1 ms'
    WHERE id = $1 AND token = $2 AND state = 'running' AND forget_at > clock_timestamp()
    RETURNING 1
)
SELECT EXISTS (SELECT FROM released)
    OR EXISTS (SELECT FROM steadfast_records
               WHERE id = $1 AND $2 = ANY (tombstones) AND tombstones_until > clock_timestamp())
