-- No ARGV. Answers what is known of the key, and nil if nothing is.
return exists and known
