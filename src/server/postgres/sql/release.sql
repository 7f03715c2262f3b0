-- Gives the key back. $1 id, $2 token
DELETE FROM steadfast_records
WHERE id = $1 AND token = $2 AND state = 'running' AND forget_at > clock_timestamp()
