#!/usr/bin/env python3
"""Training's loss on every split over 200 steps beside one rank's, and a run whose workers are killed 20 times in 300
steps beside one that nobody disturbs: build/bench/curves.json and a table. The demo model, all its weights and LoRA, texts
that this program writes.
"""
import argparse
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from report import ROOT, output_of, row, write

MODEL = ROOT / "assets/demo-model"
SPLITS = {"recomputed": ["--grad-checkpoint"], "tp 2": ["--ranks", 2], "dp 2": ["--ranks", 2, "--parallel", "dp"],
          "tp 2, recomputed": ["--ranks", 2, "--grad-checkpoint"],
          "dp 2, recomputed": ["--ranks", 2, "--parallel", "dp", "--grad-checkpoint"],
          "dp 3": ["--ranks", 3, "--parallel", "dp"], "tp 2, 2 replicas": ["--ranks", 4, "--replicas", 2],
          "pp 2": ["--ranks", 2, "--parallel", "pp"], "pp 2, recomputed": ["--ranks", 2, "--parallel", "pp", "--grad-checkpoint"],
          "sdp 2": ["--ranks", 2, "--parallel", "sdp"],
          "sdp 2, recomputed": ["--ranks", 2, "--parallel", "sdp", "--grad-checkpoint"]}
TIMEOUT_S = 1800


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="of a curve [200]")
    parser.add_argument("--fault-steps", type=int, default=300, help="of the run with kills [300]")
    parser.add_argument("--kills", type=int, default=20, help="in that run [20]")
    parser.add_argument("--seed", type=int, default=1, help="of when, and which worker [1]")
    parser.add_argument("--program", default=ROOT / "build/release/tandem", help="[build/release/tandem]")
    return parser.parse_args()


def write_texts(folder):
    rng = random.Random(1)
    folder.mkdir()
    with open(folder / "train.jsonl", "w") as file:
        for _ in range(400):
            a, b = rng.randrange(10, 99), rng.randrange(10, 99)
            turns = [{"role": "user", "content": f"What is {a} + {b}?"}, {"role": "assistant", "content": f"{a} + {b} = {a + b}."}]
            file.write(json.dumps({"messages": turns}) + "\n")


def command_of(args, data, out, steps, *more):
    words = [args.program, "train", MODEL, "--data", data, "--out", out, "--iters", steps, "--batch-size", 4, "--device", "cpu",
             "--steps-per-report", 1, *more]
    return [str(word) for word in words]


def losses(command, out):
    output_of(command, TIMEOUT_S)
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [line["train_loss"] for line in lines if "train_loss" in line]


def curve_rows(args, folder):
    rows = []
    for method, rate in (("full", 1e-4), ("lora", 1e-5)):
        of_method = ["--method", method, "--learning-rate", rate]
        one = losses(command_of(args, folder / "data", folder / f"{method}-1", args.steps, *of_method), folder / f"{method}-1")
        print(f"{method}: {one[0]:.3f} to {one[-1]:.3f}", file=sys.stderr)
        for name, split in SPLITS.items():
            if method == "lora" and name.startswith("sdp"):
                continue  # of adapters there is none
            out = folder / f"{method}-{name}"
            command = command_of(args, folder / "data", out, args.steps, *of_method, *split)
            other = losses(command, out)
            worst = max(abs(a - b) / a for a, b in zip(one, other, strict=True))
            rows.append(row(f"{method}, {args.steps} steps, {name}: largest relative difference of the loss", worst, "<= 1e-3",
                            "", shlex.join(command)))
            print(f"{method}, {name}: {worst:.2e}", file=sys.stderr)
    return rows


def workers_of(pid):
    """The workers' ids, in the order in which they were started."""
    return sorted(int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def run_killed(command, steps, kills, seed):
    """Kills a worker after each of so many steps' reports; the exit code and how many were killed."""
    rng = random.Random(seed)
    after = {step: rng.randrange(2) for step in rng.sample(range(1, steps), kills)}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    killed = 0
    for line in process.stderr:
        found = re.match(r"step +(\d+) of", line)
        if found and (rank := after.pop(int(found[1]), None)) is not None:
            while len(workers := workers_of(process.pid)) < 2:  # the group starts again
                time.sleep(0.05)
            os.kill(workers[rank], signal.SIGKILL)
            killed += 1
    return process.wait(TIMEOUT_S), killed


def fault_rows(args, folder):
    more = ["--ranks", 2, "--learning-rate", 1e-3, "--save-every", 10, "--restarts", 2 * args.kills]
    whole, killed = folder / "whole", folder / "killed"
    losses(command_of(args, folder / "data", whole, args.fault_steps, *more), whole)
    command = command_of(args, folder / "data", killed, args.fault_steps, *more)
    code, kills = run_killed(command, args.fault_steps, args.kills, args.seed)
    if code:
        raise RuntimeError(f"{shlex.join(command)}\nended with {code} after {kills} kills")
    same = (whole / "adapters.safetensors").read_bytes() == (killed / "adapters.safetensors").read_bytes()
    name = f"{args.fault_steps} steps, workers killed"
    return [row(name, kills, f">= {args.kills}", "times", shlex.join(command)),
            row(f"{name}: the adapters are those of an undisturbed run, bit for bit", int(same), ">= 1", "", shlex.join(command))]


def main():
    args = parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_texts(folder / "data")
        write("curves", fault_rows(args, folder) + curve_rows(args, folder))


if __name__ == "__main__":
    main()
