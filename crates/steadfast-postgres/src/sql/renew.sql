-- Restarts the lease. $1 id, $2 token, $3 lease in ms
UPDATE steadfast_records
SET lease_until = clock_timestamp() + $3 * interval '1 ms',
    forget_at = clock_timestamp() + ($3 + retention_ms) * interval '1 ms'
WHERE id = $1 AND token = $2 AND state = 'running' AND forget_at > clock_timestamp()
