"""Run `gym.testing.stand_ins.openenv_server` under its documented name, `python -m gym.testing.openenv_server`."""

from gym.testing.stand_ins.openenv_server import GuessServer, main

__all__ = ["GuessServer", "main"]

if __name__ == "__main__":
    main()
