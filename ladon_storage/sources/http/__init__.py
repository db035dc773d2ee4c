"""HTTP as sources need it: retries, redirects, circuits and limits by host."""
