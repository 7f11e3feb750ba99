"""Model calls of outside agents, recorded by the proxy and shown as rollouts."""
