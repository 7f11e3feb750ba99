"""Mixtures of reasoning_gym's datasets, under the documented import path."""

from gym.environments.builtin.reasoning_mixture import Mixture, Pace, Source

__all__ = ["Mixture", "Pace", "Source"]
