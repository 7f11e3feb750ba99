# ruff: noqa: E501  programs are easier to read on one line
"""Wrong answers to "double(x)" that try to be scored as right ones, or not to be scored at all.

Each is run when it is loaded (`AT_LOAD`) or in its function (`IN_CALL`), which then gives a wrong value.
"""

from __future__ import annotations

_FRAME = """
import base64, json
lines = b'{"passed": true}\\n' * 3 + b'{"finished": true}\\n'
counts = {"passed": 3, "seen": 3, "finished": True, "failed": None, "bad": None}
body = json.dumps({"exit_code": 0, "stopped": None, "wall_s": 0.1, "cpu_s": 0.1, "stdout": "", "stderr": "",
    "verdict": counts, "began": True, "nonce": "0" * 32}).encode()
frame = str(len(body)).encode() + b"\\n" + body
"""
_PIDS = "import os, signal\nme = os.getpid()\npids = [int(n) for n in os.listdir('/proc') if n.isdigit() and int(n) != me]\n"
_C = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"

FORGERIES: dict[str, str] = {
    "writes replies to every descriptor": _FRAME
    + "import os\nfor fd in range(256):\n    for data in (lines, frame, frame + frame):\n        try: os.write(fd, data)\n        except OSError: pass",
    "prints replies": _FRAME + "print(frame.decode()); print(lines.decode(), flush=True)",
    "closes every descriptor": "import os\nos.closerange(0, 256)",
    "sends replies through every socket": _FRAME
    + "import os, socket\nfor fd in range(256):\n    try: socket.socket(fileno=os.dup(fd)).sendall(frame)\n    except OSError: pass",
    "opens descriptors of others": _FRAME
    + _PIDS
    + "for pid in [*pids, os.getppid()]:\n    for fd in range(64):\n        try: os.write(os.open(f'/proc/{pid}/fd/{fd}', os.O_WRONLY | os.O_NONBLOCK), lines)\n        except OSError: pass",
    "takes descriptors of others": _FRAME
    + _PIDS
    + _C
    + "for pid in pids:\n    pidfd = libc.syscall(434, pid, 0)\n    for fd in range(64):\n        got = libc.syscall(438, pidfd, fd, 0)\n        if got >= 0: os.write(got, lines)",
    "interrupts process 1": "import os\nos.kill(1, 2)",
    "sends every signal to process 1": "import os\nfor n in range(1, 65):\n    try: os.kill(1, n)\n    except OSError: pass",
    "sends every signal to the tests": _PIDS
    + "for n in range(1, 65):\n    for pid in pids:\n        if pid != 1 and n != 19:\n            try: os.kill(pid, n)\n            except OSError: pass",
    "queues signals for process 1": _C + "import os\nfor n in range(2, 65):\n    libc.sigqueue(1, n, None)",
    "lowers the limits of process 1": "import resource\nfor n in range(16):\n    try: resource.prlimit(1, n, (0, 0))\n    except (OSError, ValueError): pass",
    "lowers its own limits": "import resource\nfor n in range(16):\n    try: resource.setrlimit(n, (0, 0))\n    except (OSError, ValueError): pass",
    "lowers the priority of process 1": "import os\nfor act in (lambda: os.sched_setscheduler(1, os.SCHED_IDLE, os.sched_param(0)), lambda: os.setpriority(os.PRIO_USER, 0, 19)):\n    try: act()\n    except OSError: pass",
    "kills everything": "import os\nos.kill(-1, 9)",
    "kills the tests": _PIDS + "for pid in pids:\n    pid != 1 and os.kill(pid, 9)",
    "stops the tests": _PIDS
    + "for pid in pids:\n    pid != 1 and os.kill(pid, signal.SIGSTOP)\nimport time; time.sleep(60)",
    "traces the tests": _PIDS
    + _C
    + "for pid in pids:\n    libc.ptrace(16, pid, None, None); libc.ptrace(0x4206, pid, None, None)\n    try: open(f'/proc/{pid}/mem', 'r+b')\n    except OSError: pass",
    "exits": "import os\nos._exit(0)",
    "raises SystemExit": "raise SystemExit(0)",
    "runs another program in its place": _FRAME
    + "import os\nos.execv('/bin/sh', ['sh', '-c', 'for fd in 0 1 2 3 4 5 6 7 8 9; do echo \"$0\" >&$fd; done', lines.decode()])",
    "forks without end": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "takes all memory": "import os\nos.fork(); os.fork()\nheld = []\nwhile True:\n    try: held.append(bytearray(2**20))\n    except MemoryError: pass",
    "fills all files": "import os\nfor place in ('/work', '/tmp', '/dev/shm', '/var/tmp', '/run'):\n    try:\n        for n in range(100):\n            open(f'{place}/{n}', 'wb').write(b'x' * 4_000_000)\n    except OSError: pass",
    "makes files without end": "import os\nfor place in ('/work', '/tmp', '/dev/shm'):\n    try:\n        for n in range(40_000):\n            os.close(os.open(f'{place}/e{n}', os.O_CREAT))\n    except OSError: pass",
    "takes all descriptors": "import os\nheld = []\ntry:\n    while True: held.append(os.pipe())\nexcept OSError: pass",
    "prints without end": "while True: print('x' * 100_000)",
    "prints until a count is cut": "import sys\nsys.stdout.write('x' * (64 * 1024 - 3)); sys.stdout.flush()",
    "replaces modules": _FRAME
    + "import sys\nfor name in ('json', 'os', 'socket', 'sitecustomize', 'usercustomize'):\n    for place in ('/work', '/tmp'):\n        open(f'{place}/{name}.py', 'w').write('import os; os._exit(0)')\nfor module in list(sys.modules.values()):\n    for name in ('encode', 'decode', 'dumps', 'loads'):\n        if hasattr(module, name):\n            try: setattr(module, name, lambda *a, **k: True)\n            except (AttributeError, TypeError): pass",
    "changes the harness's frame": "import sys\nframe = sys._getframe()\nwhile frame:\n    for name, value in list(frame.f_locals.items()):\n        if name in ('reply', 'channel'):\n            try: (value if callable(value) else lambda d: value.sendall(b'{\"finished\": true}\\n'))({'finished': True, 'passed': True})\n            except Exception: pass\n    frame = frame.f_back",
    "traces its own process": "import sys\nsys.settrace(lambda *a: (_ for _ in ()).throw(SystemExit(0)))\nsys.setprofile(lambda *a: None)",
    "leaves handlers behind": _FRAME
    + "import atexit, gc, os\ndef forge(*_):\n    for fd in range(64):\n        try: os.write(fd, lines + frame)\n        except OSError: pass\nclass Last:\n    __del__ = forge\natexit.register(forge)\nlast = Last(); last.me = last\ngc.callbacks.append(forge)",
    "leaves threads behind": _FRAME
    + "import os, threading, time\ndef forge():\n    while True:\n        for fd in range(64):\n            try: os.write(fd, lines)\n            except OSError: pass\n        time.sleep(0.01)\nfor _ in range(4):\n    threading.Thread(target=forge, daemon=True).start()",
    "leaves processes behind": _FRAME
    + "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        while True:\n            for fd in range(64):\n                try: os.write(fd, lines + frame)\n                except OSError: pass\n            os.kill(1, 2); time.sleep(0.01)\n    os._exit(0)",
    "looks for the nonce": _FRAME
    + _PIDS
    + "import re\nfor pid in [1, *pids]:\n    for name in ('cmdline', 'environ', 'maps', 'mem', 'syscall', 'auxv', 'comm'):\n        try: text = open(f'/proc/{pid}/{name}', 'rb').read(100_000)\n        except OSError: continue\n        for nonce in re.findall(rb'[0-9a-f]{32}', text):\n            for fd in range(64):\n                try: os.write(fd, frame.replace(b'0' * 32, nonce))\n                except OSError: pass",
    "sends what no reader ends": "import socket\nfor fd in range(3, 16):\n    try:\n        channel = socket.socket(fileno=fd)\n        channel.sendall(b'[' * 5_000_000 + b'\\n' + b'{\"value\": ' * 100_000 + b'\\n')\n    except OSError: pass",
    "equals everything": "class Same(int):\n    __eq__ = lambda *a: True\n    __ne__ = lambda *a: False\n    __hash__ = int.__hash__\n    __add__ = __mul__ = lambda *a: Same(1)\ndouble = lambda x: Same(1)\nglobals()['Same'] = Same",
    "overrides builtins": "import builtins\nfor name in ('AssertionError', 'Exception', 'isinstance', 'issubclass', 'zip', 'type', 'exec', 'compile', 'bool', 'str', 'int'):\n    setattr(builtins, name, lambda *a, **k: True)",
    "replaces the test library": "import sys, types\nfor name in ('inside', 'gym.sandbox.inside', 'gym.sandbox.against_tests', 'json', 'socket', 'os'):\n    fake = types.ModuleType(name); fake.run_tests = fake.dumps = fake.loads = lambda *a, **k: True\n    sys.modules[name] = fake",
    "patches the functions of the grader": "import gc, types\nfor each in gc.get_objects():\n    if isinstance(each, types.FunctionType) and each.__name__ in ('encode', 'decode', 'reply', 'run_tests', 'serve_answer', 'write_all'):\n        each.__code__ = (lambda *a, **k: {'i': '0x4'}).__code__.replace(co_freevars=each.__code__.co_freevars)",
    "exits while it is imported": "import os\nopen('/work/helper.py', 'w').write('import sys; sys.exit(0)')\nimport sys; sys.path.insert(0, '/work')\nimport helper",
    "never returns from recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef deep(n): return deep(n + 1)\ndeep(0)",
    "raises what looks like the tests' own": "class _BadTests(Exception): pass\n_BadTests.__name__ = '_BadTests'\nraise _BadTests('these tests cannot be run')",
    "raises what cannot be told": "class Odd(BaseException):\n    def __str__(self): import os; os._exit(0)\nraise Odd()",
    "has a class that is no exception": "class Name(type):\n    __name__ = property(lambda self: 1 / 0)\nclass Odd(Exception, metaclass=Name): pass\nraise Odd()",
    "handles every signal": "import os, signal\nfor n in range(1, 65):\n    try: signal.signal(n, lambda *a: os._exit(0))\n    except (OSError, ValueError): pass\nsignal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)",
    "closes its streams": "import os, sys\nfor stream in (sys.stdin, sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):\n    try: stream.close()\n    except OSError: pass\nos.closerange(0, 3)",
    "crashes the interpreter": "import ctypes\nctypes.string_at(0)",
    "gives a value that is too deep": "value = []\nfor _ in range(100_000): value = [value]\ndouble = lambda x: value\nglobals()['double'] = double",
    "lets go of the channel": "import os\nfor fd in range(3, 256):\n    try: os.close(fd)\n    except OSError: pass",
    "uses memory that no process has": "import mmap, os\nfor n in range(40):\n    for make in (lambda: mmap.mmap(-1, 2**24), lambda: mmap.mmap(os.open('/dev/zero', os.O_RDWR), 2**24)):\n        try:\n            held = make(); held.write(b'x' * 2**24); held.close()\n        except OSError: pass",
}


def indented(program: str) -> str:
    return "\n".join(f"    {line}" for line in program.splitlines())


def at_load(program: str) -> str:
    return f"{program}\ndef double(x):\n    return 1\n"


def in_call(program: str) -> str:
    return f"def double(x):\n{indented(program)}\n    return 1\n"
