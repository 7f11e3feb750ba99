"""`farm doctor`: checks of this machine and its farm, with advice on each failure."""
