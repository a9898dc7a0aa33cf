"""Prints a lock, `name==version` lines, from the report of `pip install --dry-run --report FILE`: see `make lock`."""

import json
import sys
from pathlib import Path

# The installer's own; `pip freeze` leaves them out, too.
_INSTALLER = ("pip", "setuptools", "wheel", "post-training")

report = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
packages = {item["metadata"]["name"]: item["metadata"]["version"].partition("+")[0] for item in report["install"]}
for name in sorted(packages, key=str.lower):
    if name not in _INSTALLER:
        print(f"{name}=={packages[name]}")
