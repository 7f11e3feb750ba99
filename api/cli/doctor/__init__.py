"""`farm doctor`: checks of this machine and its farm, and what to do about each that fails."""
