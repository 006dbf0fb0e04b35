#!/usr/bin/env python3
"""Gradients on their way between two machines: data-parallel training of a model of 98 million parameters on two ranks of
one core each, in network namespaces joined by a link shaped to 1 Gbit/s, beside iperf3 over the same link and two trainings
of one rank each that know nothing of each other, the sides in turn: build/bench/gradients.json and a table.

The link's use is that of steps with next to nothing to compute. What the backward hides of it: a step on both ranks may
take longer than that of the two apart, of as many texts each, by that part of the sum's time that is not hidden. Needs root, iproute2
and iperf3.
"""
import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from links import inside, iperf3_both_ways, missing_for_links, path_with, shaped_links, write_ssh
from report import ROOT, row, write
from weights import llama_shapes

SHAPE = ROOT / "bench/shapes/100m.json"
RATE_MBIT = 1000
TIMEOUT_S = 600
TOKENS = 256  # of a text
TOKENS_OF_SHORT = 16  # of a step with next to nothing to compute
BOTH = ["--hosts", "local,far", "--parallel", "dp"]


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often the sides take turns [3]")
    parser.add_argument("--texts", type=int, default=6, help="of a rank in a step, of %d tokens each [6]" % TOKENS)
    parser.add_argument("--repeat", type=int, default=3, help="steps of a side's turn [3]")
    parser.add_argument("--program", default=ROOT / "build/release/tandem", help="[build/release/tandem]")
    return parser.parse_args()


def train(command, folder, namespace, at_once=1):
    """Seconds of a step and of its sums over ranks: of `at_once` such trainings, a core each, the slower one's."""
    running = []
    try:
        for core in range(at_once):
            own = [*inside(namespace), *command, "--pin", str(core)]
            running.append(subprocess.Popen(own, env=path_with(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        ends = [one.communicate(timeout=TIMEOUT_S) for one in running]
    finally:
        for one in running:
            one.kill()
    for one, (_, said) in zip(running, ends):
        if one.returncode:
            raise RuntimeError(f"{shlex.join(command)}\nended with {one.returncode}:\n{said[-2000:]}")
    results = [json.loads(out) for out, _ in ends]
    return max((statistics.median(result["step_s"]), result["link_s"] / len(result["step_s"])) for result in results)


def measure(args, folder):
    base = [args.program, "bench", "--shape", SHAPE, "--bits", "bf16", "--train", "full", "--threads", 1, "--device", "cpu",
            "--dtype", "float32", "--remote-program", args.program, "--repeat", args.repeat, "--json"]
    commands = {"apart": [*base, "--batch", args.texts, "--prompt", TOKENS],
                "both": [*base, *BOTH, "--batch", 2 * args.texts, "--prompt", TOKENS],
                "short": [*base, *BOTH, "--batch", 2, "--prompt", TOKENS_OF_SHORT // 2]}
    commands = {side: [str(word) for word in command] for side, command in commands.items()}
    found = {"iperf3": [], **{side: [] for side in commands}}
    with shaped_links([RATE_MBIT]) as (names, addresses):
        write_ssh(folder, names[1], "taskset -c 1 $*")
        for turn in range(args.rounds):
            found["iperf3"].append(iperf3_both_ways(names, addresses))
            for side, command in commands.items():
                found[side].append(train(command, folder, names[0], at_once=2 if side == "apart" else 1))
            print(f"round {turn + 1} of {args.rounds}: iperf3 {found['iperf3'][-1]:.0f} Mbit/s; " +
                  ", ".join(f"{side} {found[side][-1][0]:.2f} s (sums {found[side][-1][1]:.2f} s)" for side in commands),
                  file=sys.stderr)
    return found, {side: shlex.join(command) for side, command in commands.items()}


def rows_of(found, commands):
    shapes = llama_shapes(json.loads(SHAPE.read_text()))
    shapes["model.embed_tokens.weight"] = (TOKENS_OF_SHORT, shapes["model.norm.weight"][0])  # of others there is no gradient
    sent = sum(shape[0] * (shape[1] if len(shape) == 2 else 1) for shape in shapes.values())
    # Of two ranks each sends as much as it has.
    mbit = [sent * 32e-6 / link_s for _, link_s in found["short"]]
    shares = [one / link for one, link in zip(mbit, found["iperf3"])]
    hidden = [1 - (both - apart) / sums
              for (both, _), (apart, _), (_, sums) in zip(found["both"], found["apart"], found["short"])]
    step = {side: statistics.median(one for one, _ in found[side]) for side in commands}
    sums = statistics.median(one for _, one in found["short"])
    return [row("gradients over a link of 1 Gbit/s, of iperf3", statistics.median(shares), ">= 0.9", "ratio",
                commands["short"]),
            row("gradients over a link of 1 Gbit/s", statistics.median(mbit), "", "Mbit/s", commands["short"]),
            row("sum of all gradients", sums, "", "s", commands["short"]),
            row("a step of two ranks apart", step["apart"], "", "s", commands["apart"]),
            row("a step of both together", step["both"], "", "s", commands["both"]),
            row("of the sum hidden by the backward", statistics.median(hidden), ">= 0.8", "ratio", commands["both"])]


def main():
    args = parse_args()
    missing = missing_for_links()
    if missing:
        sys.exit(f"bench/gradients.py: needs {missing}")
    with tempfile.TemporaryDirectory() as folder:
        write("gradients", rows_of(*measure(args, Path(folder))))


if __name__ == "__main__":
    main()
