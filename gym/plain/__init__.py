"""Plain data out of code and texts that are not trusted: values, JSON, marked parts."""
