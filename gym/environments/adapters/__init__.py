"""Adapters for other people's environments: Gymnasium, verifiers, NeMo Gym, OpenEnv."""
