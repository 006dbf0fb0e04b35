#!/usr/bin/env python3
"""Training: two ranks of one core each over one rank of one core, and the memory of either: build/bench/train.json and a
table. `tandem bench --train` on random tokens; sides alternate, medians of --rounds times --repeat steps.
"""
import argparse
import collections
import json
import shlex
import statistics
import sys

from report import ROOT, output_of, row, write

TINY, SHAPE = ROOT / "assets/demo-model", ROOT / "bench/shapes/1b.json"
# name: arguments of `tandem bench` on either side, the last four of which are a step's size
CASES = {
    "tiny, full": [TINY, "--train", "full", "--batch", 32, "--prompt", 256],
    "1b, LoRA on bf16": ["--shape", SHAPE, "--bits", "bf16", "--train", "lora", "--batch", 2, "--prompt", 128],
    "1b, LoRA on 4 bit": ["--shape", SHAPE, "--bits", 4, "--train", "lora", "--batch", 2, "--prompt", 128],
}
ONE, TWO = ["--ranks", 1, "--pin", 0], ["--ranks", 2, "--pin", "0,1", "--parallel"]
# "short": a step whose activations are next to nothing.
SIDES = {"1 rank": ONE, "dp": [*TWO, "dp"], "tp": [*TWO, "tp"], "pp": [*TWO, "pp"], "sdp": [*TWO, "sdp"],
         "recomputed": [*ONE, "--grad-checkpoint"], "short": [*ONE, "--batch", 1, "--prompt", 8]}
TIMEOUT_S = 600


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name has this [all]")
    parser.add_argument("--rounds", type=int, default=3, help="how often the sides take turns [3]")
    parser.add_argument("--repeat", type=int, default=3, help="steps of a side's turn [3]")
    parser.add_argument("--program", default=ROOT / "build/release/tandem", help="[build/release/tandem]")
    return parser.parse_args()


def main():
    args, rows = parse_args(), []
    for name, case in CASES.items():
        if args.only not in name:
            continue
        speeds, peaks, commands = collections.defaultdict(list), collections.defaultdict(list), {}
        for _ in range(args.rounds):
            for side, split in SIDES.items():
                if side == "sdp" and "full" not in case:
                    continue  # of adapters there is none
                of_case = case[:-4] if side == "short" else case
                command = [str(word) for word in (args.program, "bench", *of_case, *split, "--threads", 1, "--repeat", args.repeat,
                                                  "--device", "cpu", "--json")]
                result = json.loads(output_of(command, TIMEOUT_S))
                speeds[side] += [result["tokens"] / seconds for seconds in result["step_s"]]
                peaks[side].append(result["peak_bytes"] / 1e6)
                commands[side] = shlex.join(command)
                print(f"{name}, {side}: {speeds[side][-1]:.1f} tokens/s, {peaks[side][-1]:.0f} MB", file=sys.stderr)
        speed = {side: statistics.median(found) for side, found in speeds.items()}
        peak = {side: statistics.median(found) for side, found in peaks.items()}
        for side in speed:
            if side != "short":
                rows.append(row(f"{name}, {side}", speed[side], "", "tokens/s", commands[side]))
            rows.append(row(f"{name}, {side}: peak of rank 0", peak[side], "", "MB", commands[side]))
        rows.append(row(f"{name}: dp over 1 rank", speed["dp"] / speed["1 rank"], ">= 1.9", "x", commands["dp"]))
        rows.append(row(f"{name}: tp over 1 rank", speed["tp"] / speed["1 rank"], "", "x", commands["tp"]))
        split = [side for side in ("tp", "pp", "sdp") if side in peak]
        for side in split:
            rows.append(row(f"{name}: memory of rank 0 of {side} over 1 rank", peak[side] / peak["1 rank"], "", "x",
                            commands[side]))
        least = min(split, key=peak.get)
        rows.append(row(f"{name}: the least of them", peak[least] / peak["1 rank"], "<= 0.55", "x", commands[least]))
        activations = {side: peak[side] - peak["short"] for side in ("1 rank", "recomputed")}
        rows.append(row(f"{name}: activations recomputed over all", activations["recomputed"] / activations["1 rank"], "<= 0.4",
                        "x", commands["recomputed"]))
    write("train", rows)


if __name__ == "__main__":
    main()
