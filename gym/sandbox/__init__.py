"""Where code that a model wrote runs: nowhere but in a sandbox, and not at all where there is none."""
