"""Redis itself: connection, keys, Lua scripts, and the server that the farm starts on one machine."""
