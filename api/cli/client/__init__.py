"""Commands of a trainer: submit, watch, show results, and the environments and rows to submit."""
