"""Stand-ins for servers that tests would otherwise need: a farm, a NeMo Gym and an OpenEnv server."""
