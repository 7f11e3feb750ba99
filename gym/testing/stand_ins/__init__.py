"""Stand-ins for servers: a farm, a NeMo Gym resources server and an OpenEnv server."""
