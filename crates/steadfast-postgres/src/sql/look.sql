-- Returns the state of a key, and whether a handler's open transaction holds it.
-- $1 id, $2 the id's advisory lock, combined here with the table's number
WITH clock AS MATERIALIZED (SELECT clock_timestamp() AS now)
SELECT false AS won, false AS cancelled,
       NOT EXISTS (
           SELECT FROM pg_locks l
           WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted AND l.mode = 'ExclusiveLock'
             AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
             AND (l.classid::bigint << 32 | l.objid::bigint) = $2 # ('steadfast_records'::regclass::oid::bigint << 32)
       ) AS free,
       r.state, r.fingerprint, r.record,
       ceil(extract(epoch FROM r.lease_until - clock.now) * 1000)::bigint AS lease_left_ms
FROM clock LEFT JOIN steadfast_records r ON r.id = $1 AND r.forget_at > clock.now AND r.state <> 'free'
