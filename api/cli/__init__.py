"""The command `farm`: one module for each family of commands."""
