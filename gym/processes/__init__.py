"""Child processes that cannot outlive their parent, and the JSON lines exchanged with them."""
