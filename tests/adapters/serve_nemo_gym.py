"""Serve a resources server of the installed nemo-gym, with its own application and middleware: NAME CLASS PORT.

What is left out is NeMo Gym's head server, which tells the servers of one configuration of each other.
"""

import importlib
import sys
from unittest.mock import MagicMock

import uvicorn
from nemo_gym.server_utils import ServerClient


def main() -> None:
    """Serve on loopback until killed."""
    name, class_name, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
    module = importlib.import_module(f"resources_servers.{name}.app")
    config = getattr(module, f"{class_name}Config")(host="127.0.0.1", port=port, entrypoint="app.py", name=name)
    server = getattr(module, class_name)(config=config, server_client=MagicMock(spec=ServerClient))
    app = server.setup_webserver()
    server.setup_exception_middleware(app)
    uvicorn.run(app, host="127.0.0.1", port=port, timeout_keep_alive=30, log_level="warning")


if __name__ == "__main__":
    main()
