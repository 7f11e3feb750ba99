"""A program that behaves as the first word of its task says, well or badly. No farm code."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request


def ask(text: str, rollout: str | None = None) -> str:
    """One model call, under the rollout's own id or another."""
    base = os.environ["OPENAI_BASE_URL"]
    if rollout is not None:
        base = base.replace(os.environ["FARM_ROLLOUT_ID"], rollout)
    request = urllib.request.Request(
        f"{base}/chat/completions",
        json.dumps({"model": "whatever", "messages": [{"role": "user", "content": text}]}).encode(),
        {"content-type": "application/json", "authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        said: str = json.load(response)["choices"][0]["message"]["content"]
    return said


def main() -> None:
    word, _, rest = sys.stdin.read().partition(" ")
    if word == "print":
        sys.stdout.write(ask("What is 2 + 2 =") + rest)
    elif word == "fail":
        ask("What is 2 + 2 =")
        sys.exit(f"it went wrong with the key {os.environ['OPENAI_API_KEY']}")
    elif word == "silent":
        pass
    elif word == "linger":  # away by a session of its own and by the death of its parent
        script = (
            f"import os,time\nif os.fork():\n os._exit(0)\nos.setsid()\nif os.fork():\n os._exit(0)\ntime.sleep({rest})"
        )
        subprocess.run([sys.executable, "-c", script], check=True, close_fds=True, stdout=subprocess.DEVNULL)
        sys.stdout.write(ask("What is 2 + 2 ="))
    elif word == "sleep":
        subprocess.Popen(["sleep", rest.strip()])
        ask("What is 2 + 2 =")
        time.sleep(float(rest))
    elif word == "again":  # its first attempt does not end
        ask("What is 2 + 2 =")
        if os.environ["FARM_ATTEMPT"] == "1":
            os.execv("/bin/sleep", ["sleep", rest.strip()])
        sys.stdout.write(ask("What is 3 + 3 ="))
    elif word == "many":
        for number in range(100):
            ask(f"What is {number} + 1 =")
    elif word == "steal":
        ask("What is 2 + 2 =", rollout="somebody-elses-1")
    elif word == "dial":  # any other server on this machine
        ask("What is 2 + 2 =")
        try:
            socket.create_connection(("127.0.0.1", int(rest)), timeout=5)
        except ConnectionRefusedError:
            sys.stdout.write("nobody there, ")
        others = [name for _, name in socket.if_nameindex() if name != "lo"]
        sys.stdout.write(f"other networks: {others}" if others else "no other network")
    elif word == "descriptors":
        ask("What is 2 + 2 =")
        found = sorted(int(name) for name in os.listdir("/proc/self/fd"))  # noqa: PTH208  numbers
        sys.stdout.write(json.dumps(found[:-1]))  # the last one is the list's own
    elif word == "look":
        ask("What is 2 + 2 =")
        sys.stdout.write(json.dumps(sorted(os.environ)))


main()
