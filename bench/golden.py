#!/usr/bin/env python3
"""The golden models of tests/golden on another device: the logits after one prompt of each against what transformers
computes in float32, on one rank and on several of the one device: build/bench/golden.json and a table.

The bar is twice what transformers itself is away from its float32 logits when it computes in bfloat16
(scripts/golden/add_bfloat16.py). For quantised models, which it was not asked about, an estimate: bfloat16 rounds each
result to 8 bits, half an ulp of 2^-8 at most, over the 7 products of a layer sqrt(7 layers) 2^-9 of the largest logit,
and twice that. Where a router's choice is closer than such a rounding, another expert answers and no bar holds: those
rows have none. Splits that a model does not allow are left out.
"""
import argparse
import json
import math
import subprocess
import sys

from report import ROOT, row, write

GOLDEN = ROOT / "tests/golden"


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="gpu", help="[gpu]")
    parser.add_argument("--ranks", type=lambda text: text.split(","), default=["1", "2"], help="[1,2]")
    parser.add_argument("--only", default="", help="models whose name has this [all]")
    parser.add_argument("--program", default=ROOT / "build/release/tandem", help="[build/release/tandem]")
    return parser.parse_args()


def logits_after(program, model, ids, ranks, device):
    """The logits after the ids, and the command; RuntimeError says why there are none."""
    command = [program, "logits", model, "--ids", ",".join(map(str, ids)), "--positions", len(ids) - 1, "--ranks", ranks,
               "--device", device]
    command = list(map(str, command))
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-300:])
    return json.loads(done.stdout.splitlines()[-1])["logits"], " ".join(command)


def rows_of(args, name):
    golden = json.loads((GOLDEN / name / "golden.json").read_text())
    model = GOLDEN / name if (GOLDEN / name / "config.json").exists() else ROOT / "assets/demo-model"
    layers = json.loads((model / "config.json").read_text())["num_hidden_layers"]
    case = max(golden["cases"], key=lambda one: len(one["prompt_ids"]))
    wanted = case["last_logits"]
    tolerance = 2 * golden.get("bfloat16_difference", max(map(abs, wanted)) * math.sqrt(7 * layers) * 2**-9)
    bar = "" if golden.get("least_router_margin", 1) < 2**-8 else f"<= {tolerance:.2g}"
    found = []
    for ranks in args.ranks:
        label = f"{name}, {ranks} rank{'s' if ranks != '1' else ''}"
        try:
            logits, command = logits_after(args.program, model, case["prompt_ids"], ranks, args.device)
        except RuntimeError as why:
            print(f"{label}: {why}")
            if "can be cut into" in str(why):
                continue
            found.append(row(label, math.inf, "<= 0", "", ""))
            continue
        difference = max(abs(a - b) for a, b in zip(logits, wanted, strict=True))
        found.append(row(f"{label}: largest difference of a logit", difference, bar, "", command))
        # A choice that the bfloat16 of the logits themselves cannot tell apart counts as equal.
        least = wanted[case["greedy_ids"][0]] - wanted[max(range(len(logits)), key=logits.__getitem__)]
        found.append(row(f"{label}: lead of the golden token over the chosen", least, bar, "", command))
    return found


def main():
    args = parse_args()
    try:  # a device or a program that is not there stops all of it, once
        logits_after(args.program, ROOT / "assets/demo-model", [1], "1", args.device)
    except (OSError, RuntimeError) as why:
        sys.exit(str(why))
    names = sorted(file.parent.name for file in GOLDEN.glob("*/golden.json") if args.only in file.parent.name)
    write("golden", [one for name in names for one in rows_of(args, name)])


main()
