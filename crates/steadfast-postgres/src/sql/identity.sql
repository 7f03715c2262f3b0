-- How the records are identified.
SELECT version FROM steadfast_identity
