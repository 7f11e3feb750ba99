"""Run `gym.testing.stand_ins.resources_server` under its documented name, `python -m gym.testing.resources_server`."""

from gym.testing.stand_ins.resources_server import FakeResourcesServer, main

__all__ = ["FakeResourcesServer", "main"]

if __name__ == "__main__":
    main()
