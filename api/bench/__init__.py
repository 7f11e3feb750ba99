"""`farm bench`: the figures of the README, each measured by a command, beside a baseline measured in the same run."""
