"""Judging rollouts: a judge job's slice from claim through the judges to commit."""
