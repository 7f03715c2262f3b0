-- No ARGV. Returns the state of the key, or nil.
return exists and known
