-- Returns the identity version of the records.
SELECT version FROM steadfast_identity
