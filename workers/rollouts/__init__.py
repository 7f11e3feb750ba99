"""Running rollouts: a job's slice from claim to commit, and environment sessions held for trainers."""
