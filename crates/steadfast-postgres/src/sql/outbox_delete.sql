-- Removes operations that this transaction has locked. $1 identifiers
DELETE FROM steadfast_outbox WHERE id = ANY ($1::uuid[])
