#!/usr/bin/env python3
"""all_sum of two pinned processes over loopback, ours beside MLX's ring and OpenMPI over TCP, the three in turn; and
over links shaped to 1 Gbit/s and less beside iperf3: build/bench/collectives.json and a table.

OpenMPI (openmpi-bin; --mpi-library names its libmpi) and, for the shaped links, iperf3, iproute2 and root are used
where they are there; what is missing is said and its rows are left out.
"""
import argparse
import collections
import contextlib
import json
import os
import shlex
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile

from links import inside, iperf3_both_ways, missing_for_links, shaped_links
from report import ROOT, row, write

PROGRAM = ROOT / "build/release/bench/bench_collectives"
SIZES = {64: "64 B", 8192: "8 KB", 16384: "16 KB", 1 << 20: "1 MB", 64 << 20: "64 MB"}
SMALL = (64, 8192, 16384)
LINKS = [  # label, Mbit/s of each link, at least so much of what iperf3 measures over all of them at once
    ("1 Gbit/s link", [1000], 0.95),
    ("two links of 1 Gbit/s", [1000, 1000], 0.95),
    ("links of 1 Gbit/s and 250 Mbit/s", [1000, 250], 0.9),
    ("links of 250 Mbit/s and 1 Gbit/s", [250, 1000], 0.9),
]
TIMEOUT_S = 120


def run_pair(commands, environments):
    """The two ranks' programs at once; rank 0's lines as {bytes: µs}."""
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in commands]
        started = [subprocess.Popen([str(word) for word in command], env={**os.environ, **more}, text=True,
                                    stdout=subprocess.PIPE, stderr=log)
                   for command, more, log in zip(commands, environments, logs)]
        outputs, late = [], ""
        try:
            outputs = [process.communicate(timeout=TIMEOUT_S)[0] for process in started]
        except subprocess.TimeoutExpired:
            late = f"not done after {TIMEOUT_S} s:\n"
        finally:
            for process in started:
                process.kill()
        if late or any(process.returncode for process in started):
            raise RuntimeError(late + "\n".join(map(end_of, started, logs)))
    return {figures["bytes"]: figures["us"] for figures in map(json.loads, "".join(outputs).splitlines())}


def end_of(process, log):
    log.seek(0)
    return f"{shlex.join(process.args)}\nended with {process.wait()}: {log.read()[-500:]}"


def tcp(cores, sizes, prefixes=([], []), addresses=("127.0.0.1", "127.0.0.1")):
    with tempfile.TemporaryDirectory() as folder:
        commands = [[*prefixes[rank], "taskset", "-c", cores[rank], PROGRAM, "tcp", rank, 2, folder, ",".join(addresses),
                     *sizes] for rank in (0, 1)]
        return run_pair(commands, [{}, {}])


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def ring(cores, sizes):
    with tempfile.NamedTemporaryFile("w", suffix=".json") as hosts:
        json.dump([[f"127.0.0.1:{port}"] for port in free_ports(2)], hosts)
        hosts.flush()
        commands = [["taskset", "-c", cores[rank], PROGRAM, "ring", rank, 2, "-", "-", *sizes] for rank in (0, 1)]
        return run_pair(commands, [{"MLX_RANK": str(rank), "MLX_HOSTFILE": hosts.name} for rank in (0, 1)])


def openmpi(cores, sizes, library):
    command = ["mpirun", "--allow-run-as-root", "--bind-to", "none", "--mca", "btl", "tcp,self", "--mca", "pml", "ob1",
               "-x", "MLX_MPI_LIBNAME"]
    for rank in (0, 1):
        command += [":"] * rank + ["-np", 1, "taskset", "-c", cores[rank], PROGRAM, "mpi", rank, 2, "-", "-", *sizes]
    return run_pair([command], [{"MLX_MPI_LIBNAME": library}])


def link_rows(args, command, label, rates_mbit, bar):
    size, ours, theirs = 64 << 20, [], []
    with shaped_links(rates_mbit) as (names, addresses):
        prefixes = [inside(name) for name in names]
        for _ in range(args.link_rounds):
            theirs.append(iperf3_both_ways(names, addresses))
            # Two ranks: each sends all of its elements once.
            ours.append(size * 8 / tcp(args.cores, [size], prefixes, ["+".join(own) for own in addresses])[size])
            print(f"{label}: {ours[-1]:.0f} Mbit/s, iperf3 {theirs[-1]:.0f}", file=sys.stderr)
    share = statistics.median(a / b for a, b in zip(ours, theirs))
    return [row(f"64 MB, {label}, of iperf3 both ways", share, f">= {bar}", "ratio", command),
            row(f"64 MB, {label}", statistics.median(ours), "", "Mbit/s each way", command)]


def all_link_rows(args, command):
    if missing := missing_for_links():
        print(f"the shaped links are left out: {missing} is needed", file=sys.stderr)
        return []
    return [one for shape in LINKS for one in link_rows(args, command, *shape)]


def loopback_rows(args, command):
    sides = {"tcp": tcp, "ring": ring}
    if shutil.which("mpirun"):
        sides["OpenMPI"] = lambda cores, sizes: openmpi(cores, sizes, args.mpi_library)
    else:
        print("OpenMPI is left out: mpirun is not there (package openmpi-bin)", file=sys.stderr)
    figures = collections.defaultdict(list)  # side, bytes → µs
    for turn in range(args.rounds):
        for side, measure in sides.items():
            for size, us in measure(args.cores, list(SIZES)).items():
                figures[side, size].append(us)
        print(f"round {turn + 1} of {args.rounds}", file=sys.stderr)
    rows = []
    for size, label in SIZES.items():
        for side in sides:
            rows.append(row(f"all_sum {label}, {side}", statistics.median(figures[side, size]), "", "µs", command))
        for side in list(sides)[1:]:
            ratio = statistics.median(a / b for a, b in zip(figures["tcp", size], figures[side, size]))
            bar = ("<= 0.333" if side == "ring" else "<= 0.9") if size in SMALL else "<= 1"
            rows.append(row(f"all_sum {label}, tcp / {side}", ratio, bar, "ratio of time", command))
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=lambda text: text.split(","), default=["0", "1"], help="one a rank [0,1]")
    parser.add_argument("--rounds", type=int, default=5, help="how often the sides take turns [5]")
    parser.add_argument("--link-rounds", type=int, default=3, help="of each set of shaped links [3]")
    parser.add_argument("--mpi-library", default="libmpi.so.40", help="what MLX loads for mpi [libmpi.so.40]")
    parser.add_argument("--only", choices=["loopback", "links"], help="a part of the rows")
    args = parser.parse_args()
    command = "make bench-collectives"
    rows = [] if args.only == "links" else loopback_rows(args, command)
    if args.only != "loopback":
        rows += all_link_rows(args, command)
    write("collectives", rows)


if __name__ == "__main__":
    main()
