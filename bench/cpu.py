#!/usr/bin/env python3
"""Tandem on CPU beside llama.cpp, one run, both sides in turn: build/bench/cpu.json and a table.

llama.cpp is measured where LLAMACPP (or --llamacpp) names a folder with its programs in build/bin; models of the same
shape with random weights are looked for there as 1b-F16.gguf, 1b-BF16.gguf, 1b-Q8_0.gguf and 1b-Q4_0.gguf, and made
by the program that MAKE_GGUF (or --make-gguf) names, called with --shape 1b --type TYPE -o FILE. Without LLAMACPP only
what needs no peer is measured.

Each figure is a median of --rounds times --repeat samples. Every process is bound to its cores.
"""
import argparse
import collections
import contextlib
import json
import math
import os
import shlex
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

from report import ROOT, row, save, write

SECTIONS = ["decode", "prefill", "bandwidth", "ranks", "rpc", "first-token"]
GGUF = {"16": "F16", "bf16": "BF16", "8": "Q8_0", "4": "Q4_0"}
LABEL = {"16": "f16", "bf16": "bf16", "8": "8 bit", "4": "4 bit"}
LAYERS = 22
DECODE_BAR = dict.fromkeys(GGUF, 1.25)
PREFILL_BARS = {"avx2": {"16": 1.1, "bf16": 1.6, "8": 1.5, "4": 1.7}, "avx512": dict.fromkeys(GGUF, 1.1)}
TWO_THREADS_LESS = 0.05
START_S = 30
RUN_S = 7200  # of one command, which may wait for a lock first (--prefix)
CHOICE_TOKENS = 128  # of the runs that choose flash attention or not


class Missing(Exception):
    """Something to measure with is not there; says what and how to get it."""


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words = lambda text: text.split(",")
    parser.add_argument("--only", type=words, default=SECTIONS, help=f"of {','.join(SECTIONS)} [all]")
    parser.add_argument("--bits", type=words, default=list(GGUF), help=f"of {','.join(GGUF)} [all]")
    parser.add_argument("--threads", type=words, default=["1", "2"], help="of the pairs with llama.cpp: 1, 2 or 1,2 [both]")
    parser.add_argument("--rounds", type=int, default=3, help="how often the sides take turns [3]")
    parser.add_argument("--repeat", type=int, default=2, help="samples of a side's turn [2]")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of a prefill [512]")
    parser.add_argument("--generate", type=int, default=16, help="tokens of a decode [16]")
    parser.add_argument("--cores", type=words, default=["0", "1"], help="the two cores to compute on [0,1]")
    parser.add_argument("--program", default=ROOT / "build/release/tandem", help="[build/release/tandem]")
    parser.add_argument("--llamacpp", default=os.environ.get("LLAMACPP"), help="llama.cpp's folder [$LLAMACPP]")
    parser.add_argument("--make-gguf", default=os.environ.get("MAKE_GGUF"), help="[$MAKE_GGUF]")
    parser.add_argument("--prefix", type=shlex.split, default=[],
                        help="a command in front of each measured one, such as a lock on the machine")
    args = parser.parse_args()
    for name, given, known in (("only", args.only, SECTIONS), ("bits", args.bits, GGUF), ("threads", args.threads, ("1", "2"))):
        if wrong := [word for word in given if word not in known]:
            parser.error(f"--{name}: there is no {', '.join(wrong)}")
    if len(args.cores) != 2:
        parser.error("--cores: give two")
    return args


def is_avx512():
    with contextlib.suppress(OSError):
        return " avx512vnni" in (text := Path("/proc/cpuinfo").read_text()) or " avx512_vnni" in text
    return False


class Suite:
    def __init__(self, args):
        self.args = args
        self.samples = collections.defaultdict(list)  # (side, bits, measure) → figures
        self.commands = {}  # side, bits → the last command that was run for them
        self.attention = {}  # side, bits, phase → flash attention off or on

    def run(self, side, bits, cores, command):
        """The command's stdout, bound to the cores. What it costs in time is said on stderr."""
        command = ["taskset", "-c", ",".join(cores), *map(str, command)]
        self.commands[side, bits] = shlex.join(command)
        start = time.monotonic()
        try:
            done = subprocess.run([*self.args.prefix, *command], capture_output=True, text=True, timeout=RUN_S)
        except subprocess.TimeoutExpired as late:
            errors = (late.stderr or b"").decode(errors="replace")
            raise RuntimeError(f"{shlex.join(command)}\nnot done after {RUN_S} s:\n{errors[-2000:]}") from late
        print(f"{side} {LABEL.get(bits, bits)}: {time.monotonic() - start:.1f} s", file=sys.stderr)
        if done.returncode:
            raise RuntimeError(f"{shlex.join(command)}\nended with {done.returncode}:\n{done.stderr[-2000:]}")
        return done.stdout

    def wants(self, phase):
        """Tokens of a phase: 0 where neither it nor what is derived from it is asked for."""
        only = self.args.only
        asked = phase in only or "ranks" in only or "rpc" in only or (phase == "decode" and "bandwidth" in only)
        return getattr(self.args, "prompt" if phase == "prefill" else "generate") if asked else 0

    def tandem(self, side, bits, *, cores=1, ranks=1, prompt=None, generate=None):
        args = self.args
        cores = args.cores[:cores]
        pins = ",".join(cores) if ranks > 1 else cores[0] if len(cores) == 1 else None
        command = [args.program, "bench", "--shape", ROOT / "bench/shapes/1b.json", "--bits", bits, "--repeat", args.repeat,
                   "--prompt", self.wants("prefill") if prompt is None else prompt,
                   "--generate", self.wants("decode") if generate is None else generate,
                   "--ranks", ranks, "--threads", len(cores) // ranks, "--device", "cpu", "--json"]
        if pins:
            command += ["--pin", pins]
        result = json.loads(self.run(side, bits, cores, command))
        for phase in ("prefill", "decode"):
            if phase in result:
                tokens = result[phase]["tokens"]
                self.samples[side, bits, phase] += [tokens / s for s in result[phase]["repeats_s"]]
        if "decode" in result:
            speeds = self.samples[side, bits, "decode"][-args.repeat:]
            step_bytes = sum(rank["step_bytes"] for rank in result["ranks"])
            self.samples[side, bits, "read"] += [speed * step_bytes / 1e9 for speed in speeds]

    # llama.cpp

    def peer(self, name):
        if not self.args.llamacpp:
            raise Missing("llama.cpp: set LLAMACPP to the folder that holds build/bin/llama-bench")
        program = Path(self.args.llamacpp) / "build/bin" / name
        if not program.exists():
            raise Missing(f"{program}: build llama.cpp there, or set LLAMACPP to where it is built")
        return program

    def gguf(self, bits):
        self.peer("llama-bench")
        file = Path(self.args.llamacpp) / f"1b-{GGUF[bits]}.gguf"
        if file.exists():
            return file
        if not self.args.make_gguf:
            raise Missing(f"{file}: set MAKE_GGUF to a program that writes it (--shape 1b --type {GGUF[bits]} -o FILE)")
        python = Path(self.args.llamacpp) / "venv/bin/python"
        part = file.with_suffix(".part")
        subprocess.run([python if python.exists() else sys.executable, self.args.make_gguf, "--shape", "1b", "--type",
                        GGUF[bits], "-o", part], check=True, stdout=sys.stderr, timeout=RUN_S)
        part.rename(file)
        return file

    def llama_bench(self, side, bits, cores, prompt, generate, attention, repeat, more):
        """{(phase, attention): samples}. The file is read at the start, which leaves a first run nothing to warm up."""
        command = [self.peer("llama-bench"), "-m", self.gguf(bits), "-t", len(cores), "-p", prompt, "-n", generate, "-fa",
                   attention, "-r", repeat, "-o", "jsonl", "--no-warmup", "-lm", "none", *more]
        lines = [json.loads(line) for line in self.run(side, bits, cores, command).splitlines() if line.startswith("{")]
        return {("prefill" if line["n_prompt"] else "decode", int(line["flash_attn"])): line["samples_ts"] for line in lines}

    def llama(self, side, bits, *, cores=1, more=()):
        cores = self.args.cores[:cores]
        tokens = {phase: self.wants(phase) for phase in ("prefill", "decode")}
        asked = [phase for phase in tokens if tokens[phase]]
        if (side, bits) not in self.attention:  # the better of flash attention off and on, once
            short = {phase: min(tokens[phase], CHOICE_TOKENS) for phase in tokens}
            found = self.llama_bench(side, bits, cores, short["prefill"], short["decode"], "0,1", 1, more)
            self.attention[side, bits] = {phase: int(found[phase, 1] > found[phase, 0]) for phase in asked}
        choice = self.attention[side, bits]
        for attention in sorted(set(choice.values())):
            prompt, generate = (tokens[p] if choice.get(p) == attention else 0 for p in ("prefill", "decode"))
            found = self.llama_bench(side, bits, cores, prompt, generate, attention, self.args.repeat, more)
            for (phase, _), speeds in found.items():
                self.samples[side, bits, phase] += speeds

    def llama_rpc(self, side, bits):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server = subprocess.Popen(["taskset", "-c", self.args.cores[1], self.peer("ggml-rpc-server"), "-t", "1", "-p", str(port)],
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_for_port(port)
            self.llama(side, bits, more=["-ngl", LAYERS // 2, "--rpc", f"127.0.0.1:{port}"])
        finally:
            server.terminate()
            server.wait(START_S)

    # Machine

    def bandwidth(self):
        program = Path(self.args.program).parent / "bench/bench_bandwidth"
        lines = self.run("bandwidth", "", self.args.cores[:1], [program, 1, 4]).split()
        self.samples["bandwidth", "", "read"] += map(float, lines[:-1])

    # Rows

    def median(self, side, bits, measure):
        found = self.samples.get((side, bits, measure))
        return statistics.median(found) if found else None

    def ratio(self, name, bar, ours, theirs, bits, measure):
        """The row of one side's median over another's, after each side's own."""
        a, b = self.median(ours, bits, measure), self.median(theirs, bits, measure)
        if a is None or b is None:
            return []
        unit = "tok/s"
        command = f"{self.commands[ours, bits]} / {self.commands[theirs, bits]}"
        return [row(f"{name}: {ours}", a, "", unit, self.commands[ours, bits]),
                row(f"{name}: {theirs}", b, "", unit, self.commands[theirs, bits]),
                row(name, a / b, bar, "x", command)]


def wait_for_port(port):
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise RuntimeError(f"ggml-rpc-server does not listen on port {port} after {START_S} s")


def turns(suite, bits):
    """What takes turns for these weights: functions that measure one side once."""
    only, found = suite.args.only, []
    pairs = "decode" in only or "prefill" in only
    if pairs or {"ranks", "rpc", "bandwidth"} & set(only):
        found.append(lambda: suite.tandem("tandem, 1 core", bits))
    if pairs and "1" in suite.args.threads:
        found.append(lambda: suite.llama("llama.cpp, 1 thread", bits))
    if pairs and "2" in suite.args.threads:
        found += [lambda: suite.tandem("tandem, 2 threads", bits, cores=2),
                  lambda: suite.llama("llama.cpp, 2 threads", bits, cores=2)]
    if bits != "bf16" and {"ranks", "rpc"} & set(only):
        found.append(lambda: suite.tandem("tandem, 2 ranks", bits, cores=2, ranks=2))
    if bits != "bf16" and "rpc" in only:
        found.append(lambda: suite.llama_rpc("llama.cpp, RPC", bits))
    if bits != "4" and "bandwidth" in only:
        found.append(suite.bandwidth)
    return found


def rows_of(suite, bits):
    args, label, rows = suite.args, LABEL[bits], []
    for phase in ("decode", "prefill"):
        bar = DECODE_BAR[bits] if phase == "decode" else PREFILL_BARS["avx512" if is_avx512() else "avx2"][bits]
        if phase in args.only:
            rows += suite.ratio(f"{phase} {label}, 1 thread", f">= {bar}", "tandem, 1 core", "llama.cpp, 1 thread", bits, phase)
            rows += suite.ratio(f"{phase} {label}, 2 threads", f">= {bar - TWO_THREADS_LESS:.4g}", "tandem, 2 threads",
                                "llama.cpp, 2 threads", bits, phase)
        if "ranks" in args.only:
            rows += suite.ratio(f"{phase} {label}, 2 ranks over 1", f">= {1.92 if phase == 'decode' else 1.9}",
                                "tandem, 2 ranks", "tandem, 1 core", bits, phase)
        if "rpc" in args.only:
            rows += suite.ratio(f"{phase} {label}, 2 ranks over RPC", ">= 1.9", "tandem, 2 ranks", "llama.cpp, RPC", bits, phase)
    read, limit = suite.median("tandem, 1 core", bits, "read"), suite.median("bandwidth", "", "read")
    if "bandwidth" in args.only and read and limit and bits != "4":
        command = f"{suite.commands['tandem, 1 core', bits]} / {suite.commands['bandwidth', '']}"
        rows.append(row(f"decode {label}: weights read", read, "", "GB/s", suite.commands["tandem, 1 core", bits]))
        rows.append(row(f"decode {label}: weights read over the core's bandwidth", read / limit, ">= 0.85", "x", command))
    return rows


def first_token_rows(suite):
    """The time to the first token grows with n to this power, from 1k to 4k."""
    short, long = 1024, 4096
    for _ in range(suite.args.rounds):
        for tokens in (short, long):
            suite.tandem(f"tandem, prompt of {tokens}", "4", cores=2, prompt=tokens, generate=0)
    seconds = [tokens / suite.median(f"tandem, prompt of {tokens}", "4", "prefill") for tokens in (short, long)]
    commands = [suite.commands[f"tandem, prompt of {tokens}", "4"] for tokens in (short, long)]
    power = math.log(seconds[1] / seconds[0]) / math.log(long / short)
    return [row("first token of 1k, 4 bit, 2 threads", seconds[0], "", "s", commands[0]),
            row("first token of 4k, 4 bit, 2 threads", seconds[1], "", "s", commands[1]),
            row("first token: power of the prompt's length", power, "<= 1.3", "", " / ".join(commands))]


def main():
    suite = Suite(parse_args())
    args, rows, missing = suite.args, [], set()
    if not Path(args.program).exists():
        sys.exit(f"{args.program} is not there: make build")
    for bits in args.bits:
        for _ in range(args.rounds):
            for turn in turns(suite, bits):
                try:
                    turn()
                except Missing as why:
                    missing.add(str(why))
        rows += rows_of(suite, bits)
        save("cpu", rows)
    if limit := suite.median("bandwidth", "", "read"):
        rows.append(row("bandwidth of one core, reading", limit, "", "GB/s", suite.commands["bandwidth", ""]))
    if "first-token" in args.only:
        rows += first_token_rows(suite)
    write("cpu", rows)
    for why in sorted(missing):
        print(f"not measured: {why}", file=sys.stderr)
    failed = [one for one in rows if one.holds is False]
    print(f"{len(rows)} rows, {len(failed)} below their bar", file=sys.stderr)


if __name__ == "__main__":
    main()
