#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A GPU through sessions, beside the same GPU by NVIDIA's library alone, in one run.

usage: bench/gpu.py [--rounds N] [--max-mib N] [--unpinned] [--quick] [--double] [--output FILE]
       bench/gpu.py --show FILE     the table of an earlier run

A process on this host does the same work on both ways in turn (bench_gpu.c); the session
is that of a mediator with the GPU in its pool.  Prints a table with DESIGN's targets, and
writes flat keys, one number each, with `machine.*` for where it ran, into a file with date
and GPU in its name in $OUT, or in build-gpu/results/; samples of nvidia-smi beside it.

--unpinned: the session's slot is not pinned, as where the host has too little memory for that;
the native side is as ever.  Its file's name says so, too.
--quick takes a few samples each: for tests of this.  --double takes a double of NVIDIA's
library: figures that mean nothing.
`make bench-gpu` builds what this needs.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests/vm"), str(ROOT / "tests/gpu")]

import machine  # noqa: E402  (the path comes first)
from harness import paths, process  # noqa: E402
from harness.mediator import Mediator  # noqa: E402

# (key of the ratio, gpu's key, native's key, target, True: at most; False: at least)
RATIOS = [
    ("ratio.launch_sync", "gpu.launch_sync_us.p50", "native.launch_sync_us.p50", 1.1, True),
    ("ratio.launch_async", "gpu.launch_async_us.p50", "native.launch_async_us.p50", 1.05, True),
    ("ratio.alloc_free.1MiB", "gpu.alloc_free_us.1MiB.p50", "native.alloc_free_us.1MiB.p50", None,
     True),
    ("ratio.alloc_free.64MiB", "gpu.alloc_free_us.64MiB.p50", "native.alloc_free_us.64MiB.p50",
     None, True),
]
# Short names of the figures that matter most: copies at the greatest size.
SHORT = [("launch_sync_us", "launch_sync_us.p50"), ("launch_async_us", "launch_async_us.p50"),
         ("alloc_free_us", "alloc_free_us.1MiB.p50")]
COPIES = [("window", "pinned", 0.97), ("malloc", "pageable", 1.0)]
LARGE_BYTES = 64 << 20  # "large copies"
CLIENT_TARGET_US = 0.1
RUN_S = 540


def bytes_of(name):
    number, unit = re.fullmatch(r"(\d+)(B|KiB|MiB)", name).groups()
    return int(number) << {"B": 0, "KiB": 10, "MiB": 20}[unit]


def sizes_of(values):
    """Of the copies, rising."""
    words = [key.split(".") for key in values if key.startswith("gpu.copy_")]
    return sorted({parts[3] for parts in words if len(parts) > 3}, key=bytes_of)


def rows_of(values):
    """[(key, gpu, native, ratio, target, at_most)]; ratios are gpu's / native's."""
    rows = [(key, values[gpu], values[native], values[gpu] / values[native], target, at_most)
            for key, gpu, native, target, at_most in RATIOS]
    sizes = sizes_of(values)
    for way in ("h2d", "d2h"):
        for ours, theirs, target in COPIES:
            for size in sizes:
                unit = "us" if bytes_of(size) < 4096 else "gbps"
                gpu = values[f"gpu.copy_{way}.{ours}.{size}.{unit}"]
                native = values[f"native.copy_{way}.{theirs}.{size}.{unit}"]
                rows.append((f"ratio.copy_{way}.{ours}.{size}", gpu, native, gpu / native,
                             target if bytes_of(size) >= LARGE_BYTES else None, unit == "us"))
    return rows


def short_names(values):
    """{short name: value}, for `gpu.` (data in the window) and `native.` (pinned)."""
    names = {f"{side}.{short}": values[f"{side}.{long}"]
             for short, long in SHORT for side in ("gpu", "native")}
    largest = sizes_of(values)[-1]
    for way in ("h2d", "d2h"):
        for side, place in (("gpu", "window"), ("native", "pinned")):
            names[f"{side}.copy_{way}_gbps"] = values[f"{side}.copy_{way}.{place}.{largest}.gbps"]
    return names


def verdict(value, target, at_most):
    if target is None:
        return ""
    met = value <= target if at_most else value >= target
    return f"{'<=' if at_most else '>='} {target:g} {'met' if met else 'MISSED'}"


def table(values):
    lines = [f"{'key':34} {'session':>12} {'native':>12} {'ratio':>8}  target"]
    for key, gpu, native, ratio, target, at_most in rows_of(values):
        lines.append(f"{key[6:]:34} {gpu:12.3f} {native:12.3f} {ratio:8.3f}  "
                     f"{verdict(ratio, target, at_most)}".rstrip())
    client = values["gpu.launch_async_client_us.p50"]
    lines.append(f"{'launch_async_client_us':34} {client:12.3f} "
                 f"{values['native.launch_async_client_us.p50']:12.3f} {'':8}  "
                 f"{verdict(client, CLIENT_TARGET_US, True)} us")
    lines.append("launches and allocations in us; copies in GB/s, those under 4 KiB in us")
    return "\n".join(lines)


def unpinned_library(directory, library):
    """One that pins no slot, over this one, or over the host's own; in `directory`."""
    made = pathlib.Path(shutil.copy(paths.BUILD / "tests/doubles/unpinned_cuda.so", directory))
    if library:
        made.with_name(f"{made.name}.real").write_text(f"{library}\n")
    directory.chmod(0o755)
    return made


def measure(arguments, directory):
    """What bench_gpu prints, with a mediator for it."""
    library = []
    settings = {"device_memory_mib": arguments.max_mib + 1024, "execution_log": None}
    if arguments.double:
        copy = directory / "libcuda.so.1"
        shutil.copy(paths.BUILD / "tests/doubles/fake_cuda.so", copy)
        directory.chmod(0o755)
        copy.with_name(copy.name + ".conf").write_text("memory_bytes 4294967296\n")
        settings["cuda_library"] = copy
        library = ["--library", copy]
    if arguments.unpinned:
        settings["cuda_library"] = unpinned_library(directory, settings.get("cuda_library"))
    quick = ["--quick", "1"] if arguments.quick else []
    mediator = Mediator(directory / "mediator", directory / "share", {1: {"pool": "A"}},
                        pools={"A": "cuda:0"}, channels="window", run_dir=directory / "run",
                        **settings)
    try:
        mediator.start()
        done = subprocess.run(
            [paths.BUILD / "bench/bench_gpu", "--rounds", str(arguments.rounds), "--max-mib",
             str(arguments.max_mib), *library, *quick],
            text=True, capture_output=True, timeout=RUN_S,
            env={**os.environ, "VGPU_SOCKET": str(directory / "run/vm1.sock")}, check=False)
        if done.returncode != 0:
            raise SystemExit(f"bench_gpu: {done.stderr}{mediator.log_tail()}")
        return json.loads(done.stdout)
    finally:
        mediator.end()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=5, help="of each measure, in turn")
    parser.add_argument("--max-mib", type=int, default=1024, help="the largest copy")
    parser.add_argument("--unpinned", action="store_true", help="the session's slot is not pinned")
    parser.add_argument("--quick", action="store_true", help="few samples: for tests")
    parser.add_argument("--double", action="store_true", help="a double of NVIDIA's library")
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--show", type=pathlib.Path,
                        help="print an earlier run's table, run nothing")
    arguments = parser.parse_args()
    if arguments.show:
        print(table(json.loads(arguments.show.read_text())))
        return
    process.install_cleanup()
    told = machine.describe()
    slot = "unpinned" if arguments.unpinned else "pinned"
    name = re.sub(r"[^a-z0-9]+", "-", f"gpu-bench-{told['date'][:10]}-{told['gpu']}"
                  f"{'-unpinned' if arguments.unpinned else ''}".lower())
    output = arguments.output or machine.results() / f"{name}.json"
    directory = process.run_directory("bench-gpu")
    with machine.Samples(output.with_suffix(".nvidia-smi.csv")):
        values = measure(arguments, directory)
    values |= {row[0]: round(row[3], 4) for row in rows_of(values)}
    values |= short_names(values)
    values |= {f"machine.{key}": value for key, value in told.items()} | {"machine.slot": slot}
    output.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")
    print(table(values))
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
