"""Every benchmark in turn (`make bench`); what they print, and the machine, go to `benchmarks/results/`.

python benchmarks/run.py [--name NAME] [--only data ...] [-- arguments of each benchmark]
"""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
BENCHMARKS = ("data", "training", "padding")
PACKAGES = ("torch", "transformers", "trl", "tokenizers", "fastokens", "datasets", "pyarrow", "numpy")


def machine() -> dict[str, object]:
    """What the numbers were measured on."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line[:10] == "model name"
    ]
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_before": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
    }


def benchmark(name: str, arguments: list[str]) -> dict[str, object]:
    """Run one, showing its lines as they come. Returns lines, seconds and exit code."""
    print(f"== {name}", flush=True)
    started, lines = time.perf_counter(), []
    command = [sys.executable, "-u", str(HERE / f"{name}.py"), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip("\n"))
    return {"lines": lines, "seconds": round(time.perf_counter() - started, 1), "exit_code": process.returncode}


def main() -> int:
    """Run and write down; 1 when a benchmark failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--name", default=time.strftime("%Y-%m-%d"), help="of the result file")
    parser.add_argument("--only", nargs="*", choices=BENCHMARKS, default=BENCHMARKS)
    parser.add_argument("arguments", nargs="*", help="for each benchmark that runs")
    options = parser.parse_args()
    found = {"machine": machine(), "benchmarks": {name: benchmark(name, options.arguments) for name in options.only}}
    path = HERE / "results" / f"{options.name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    print(f"written to {path}")
    return int(any(one["exit_code"] for one in found["benchmarks"].values()))


if __name__ == "__main__":
    sys.exit(main())
