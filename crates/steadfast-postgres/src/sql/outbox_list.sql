-- Returns operations in the order of their identifiers. $1 begin behind this one, $2 maximum number
SELECT id, version, name, entry FROM steadfast_outbox
WHERE $1::uuid IS NULL OR id > $1
ORDER BY id
LIMIT $2
