"""Records of finished rollouts: their JSON, their packed trajectories, and where these are stored."""
