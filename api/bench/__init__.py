"""`farm bench`: the figures of the README, each measured by a command, against a limit measured in the same run."""
