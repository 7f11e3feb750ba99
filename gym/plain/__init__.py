"""Plain data from untrusted code and texts: values, JSON, marked parts."""
