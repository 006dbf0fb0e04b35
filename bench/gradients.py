#!/usr/bin/env python3
"""Gradients on their way between two machines: data-parallel training of a model of 98 million parameters on two ranks of
one core each, in network namespaces joined by a link shaped to 1 Gbit/s, beside iperf3 over the same link and two ranks
that have the loopback in place of it, the sides in turn: build/bench/gradients.json and a table.

The link's use is that of steps with next to nothing to compute. What the backward hides of it: a step over the link may
take longer than one over the loopback by that part of the sums' time on the link that is not hidden. Needs root, iproute2
and iperf3.
"""
import argparse
import json
import shlex
import statistics
import sys
import tempfile
from pathlib import Path

from links import inside, iperf3_both_ways, missing_for_links, path_with, shaped_links, write_ssh
from report import ROOT, output_of, row, write
from weights import llama_shapes

SHAPE = ROOT / "bench/shapes/100m.json"
RATE_MBIT = 1000
TIMEOUT_S = 600
TOKENS = 256  # of a text
TOKENS_OF_SHORT = 16  # of a step with next to nothing to compute
LINK = ["--hosts", "local,far", "--pin", 0]
LOOPBACK = ["--ranks", 2, "--pin", "0,1"]


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often the sides take turns [3]")
    parser.add_argument("--texts", type=int, default=4, help="of a rank in a step, of %d tokens each [4]" % TOKENS)
    parser.add_argument("--repeat", type=int, default=3, help="steps of a side's turn [3]")
    parser.add_argument("--program", default=ROOT / "build/release/tandem", help="[build/release/tandem]")
    return parser.parse_args()


def train(command, folder, namespace):
    """Seconds of a step and of its sums over ranks."""
    result = json.loads(output_of([*inside(namespace), *command], TIMEOUT_S, env=path_with(folder)))
    return statistics.median(result["step_s"]), result["link_s"] / len(result["step_s"])


def commands_of(args):
    base = [args.program, "bench", "--shape", SHAPE, "--bits", "bf16", "--train", "full", "--parallel", "dp", "--threads", 1,
            "--device", "cpu", "--dtype", "float32", "--remote-program", args.program, "--repeat", args.repeat, "--json"]
    whole = ["--batch", 2 * args.texts, "--prompt", TOKENS]
    short = ["--batch", 2, "--prompt", TOKENS_OF_SHORT // 2]
    sides = {"loopback": LOOPBACK + whole, "link": LINK + whole, "short, loopback": LOOPBACK + short, "short, link": LINK + short}
    return {side: [str(word) for word in base + own] for side, own in sides.items()}


def measure(args, commands, folder):
    found = {"iperf3": [], **{side: [] for side in commands}}
    with shaped_links([RATE_MBIT]) as (names, addresses):
        write_ssh(folder, names[1], "taskset -c 1 $*")
        for turn in range(args.rounds):
            found["iperf3"].append(iperf3_both_ways(names, addresses))
            for side, command in commands.items():
                found[side].append(train(command, folder, names[0]))
            print(f"round {turn + 1} of {args.rounds}: iperf3 {found['iperf3'][-1]:.0f} Mbit/s; " +
                  ", ".join(f"{side} {found[side][-1][0]:.2f} s (sums {found[side][-1][1]:.2f} s)" for side in commands),
                  file=sys.stderr)
    return found


def rows_of(found, commands):
    shapes = llama_shapes(json.loads(SHAPE.read_text()))
    shapes["model.embed_tokens.weight"] = (TOKENS_OF_SHORT, shapes["model.norm.weight"][0])  # of others there is no gradient
    sent = sum(shape[0] * (shape[1] if len(shape) == 2 else 1) for shape in shapes.values())
    # Of two ranks each sends as much as it has.
    mbit = [sent * 32e-6 / link_s for _, link_s in found["short, link"]]
    shares = [one / link for one, link in zip(mbit, found["iperf3"])]
    added = [link - loopback for (link, _), (loopback, _) in zip(found["link"], found["loopback"])]
    sums = {side: [one for _, one in found[f"short, {side}"]] for side in ("link", "loopback")}
    hidden = [1 - more / (link - loopback) for more, link, loopback in zip(added, sums["link"], sums["loopback"])]
    step = {side: statistics.median(one for one, _ in found[side]) for side in commands}
    of_link, of_short = commands["link"], commands["short, link"]
    table = [("gradients over a link of 1 Gbit/s, of iperf3", statistics.median(shares), ">= 0.9", "ratio", of_short),
             ("gradients over a link of 1 Gbit/s", statistics.median(mbit), "", "Mbit/s", of_short),
             ("sums of all gradients, link", statistics.median(sums["link"]), "", "s", of_short),
             ("sums of all gradients, loopback", statistics.median(sums["loopback"]), "", "s", commands["short, loopback"]),
             ("a step, link", step["link"], "", "s", of_link),
             ("a step, loopback", step["loopback"], "", "s", commands["loopback"]),
             ("what the link adds, hidden by the backward", statistics.median(hidden), ">= 0.8", "ratio", of_link)]
    return [row(*one[:4], shlex.join(one[4])) for one in table]


def main():
    args = parse_args()
    missing = missing_for_links()
    if missing:
        sys.exit(f"bench/gradients.py: needs {missing}")
    with tempfile.TemporaryDirectory() as folder:
        commands = commands_of(args)
        write("gradients", rows_of(measure(args, commands, Path(folder)), commands))


if __name__ == "__main__":
    main()
