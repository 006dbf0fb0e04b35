#!/usr/bin/env python3
"""Weights on their way to a machine that lacks the model: two ranks in network namespaces joined by a link shaped to
1 Gbit/s, beside iperf3 over the same link, the sides in turn: build/bench/weights.json and a table.

What is timed is the load of the rank without files, from its first slice to its last, packing included. Then the same
with --cache-shards, and the start after that. Needs root, iproute2 and iperf3, and 5 GB of disk.
"""
import argparse
import json
import random
import shutil
import statistics
import struct
import sys
import tempfile
from pathlib import Path

from links import inside, iperf3_one_way, missing_for_links, path_with, shaped_links, write_ssh
from report import ROOT, output_of, row, write

PROGRAM = ROOT / "build/release/tandem"
RATE_MBIT = 1000
TIMEOUT_S = 300


def llama_shapes(config):
    hidden, width = config["hidden_size"], config["intermediate_size"]
    keys = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes = {"model.embed_tokens": (config["vocab_size"], hidden), "lm_head": (config["vocab_size"], hidden),
              "model.norm": (hidden,)}
    for layer in range(config["num_hidden_layers"]):
        for name, shape in {"self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (keys, hidden),
                            "self_attn.v_proj": (keys, hidden), "self_attn.o_proj": (hidden, hidden),
                            "mlp.gate_proj": (width, hidden), "mlp.up_proj": (width, hidden),
                            "mlp.down_proj": (hidden, width), "input_layernorm": (hidden,),
                            "post_attention_layernorm": (hidden,)}.items():
            shapes[f"model.layers.{layer}.{name}"] = shape
    return {f"{name}.weight": shape for name, shape in shapes.items()}


def write_model(folder, shape_file):
    """Random bfloat16 numbers of about 0.01: a block of them, over and over."""
    config = json.loads(shape_file.read_text()) | {"torch_dtype": "bfloat16"}
    rng = random.Random(1)
    block = b"".join(struct.pack("<H", rng.choice((0, 0x8000)) | 0x3C00 | rng.randrange(128)) for _ in range(65_521))
    header, offset = {}, 0
    for name, shape in llama_shapes(config).items():
        bytes_ = 2 * shape[0] * (shape[1] if len(shape) == 2 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + bytes_]}
        offset += bytes_
    text = json.dumps(header).encode()
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        while offset > 0:
            offset -= file.write(block[:offset])


def load(folder, name, *flags):
    """What the rank without files says of its load."""
    command = [*inside(name), PROGRAM, "bench", folder / "model", "--hosts", "local,far", "--remote-program", PROGRAM,
               "--device", "cpu", "--prompt", "1", "--generate", "0", "--repeat", "1", "--json", *flags]
    environment = path_with(folder) | {"XDG_CACHE_HOME": str(folder / "cache")}
    return json.loads(output_of([str(word) for word in command], TIMEOUT_S, env=environment))["ranks"][1]


def mbit_per_s(rank):
    return rank["received_bytes"] * 8e-6 / rank["load_s"]


def measure(folder, rounds):
    sides = {"iperf3": [], "weights": [], "kept": [], "read": []}
    with shaped_links([RATE_MBIT]) as (names, addresses):
        # The model's folder is empty there.
        write_ssh(folder, names[1], f'unshare -m sh -c "mount -t tmpfs none {folder / "model"} && exec $*"')
        for turn in range(rounds):
            shutil.rmtree(folder / "cache", ignore_errors=True)
            sides["iperf3"].append(iperf3_one_way(names, addresses))
            sides["weights"].append(load(folder, names[0]))
            sides["kept"].append(load(folder, names[0], "--cache-shards"))
            sides["read"].append(load(folder, names[0], "--cache-shards"))
            print(f"round {turn + 1} of {rounds}: iperf3 {sides['iperf3'][-1]:.0f} Mbit/s, weights "
                  f"{mbit_per_s(sides['weights'][-1]):.0f}, kept as well {mbit_per_s(sides['kept'][-1]):.0f}; read back in "
                  f"{sides['read'][-1]['load_s']:.1f} s", file=sys.stderr)
    return sides


def rows_of(sides):
    command = "make bench-weights"
    share = lambda side: statistics.median(mbit_per_s(rank) / link for rank, link in zip(sides[side], sides["iperf3"]))
    speed = lambda side: statistics.median(mbit_per_s(rank) for rank in sides[side])
    read = sides["read"]
    return [row("weights over a link of 1 Gbit/s, of iperf3", share("weights"), ">= 0.9", "ratio", command),
            row("weights over a link of 1 Gbit/s", speed("weights"), "", "Mbit/s", command),
            row("the same with --cache-shards, of iperf3", share("kept"), ">= 0.9", "ratio", command),
            row("bytes received at the next start", max(rank["received_bytes"] for rank in read), "<= 0", "B", command),
            row("the next start's load", statistics.median(rank["load_s"] for rank in read), "", "s", command),
            row("of so many bytes", read[0]["weight_bytes"], "", "B", command)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often the sides take turns [5]")
    parser.add_argument("--shape", type=Path, default=ROOT / "bench/shapes/1b.json",
                        help="config.json of a llama model [1b: 2.2 GB, of which half travel]")
    args = parser.parse_args()
    if missing := missing_for_links():
        sys.exit(f"{missing} is needed")
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / "model", args.shape)
        write("weights", rows_of(measure(Path(folder), args.rounds)))


if __name__ == "__main__":
    main()
