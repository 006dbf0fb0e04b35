#!/usr/bin/env python3
"""Steps of LoRA by PyTorch and peft, for bench/train.py to stand beside: random weights of a shape, random tokens, AdamW,
adapters of rank 8 beside every linear product of every layer. Prints {"step_s": […], "tokens": …, "peak_bytes": …}.

usage: peft_step.py SHAPE.json [--device cpu|cuda] [--dtype float32|bfloat16] …   (pip install torch transformers peft)
"""
import argparse
import json
import resource
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

PRODUCTS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a text")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--grad-checkpoint", action="store_true")
    return parser.parse_args()


def make_model(args):
    keys = json.loads(args.shape.read_text())
    config = AutoConfig.for_model(**keys)
    with torch.device(args.device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, args.dtype), attn_implementation="sdpa")
    if args.grad_checkpoint:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    return get_peft_model(model, LoraConfig(r=8, lora_alpha=160, target_modules=PRODUCTS)), config.vocab_size


def main():
    args = parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    model, vocabulary = make_model(args)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-5)
    cuda = args.device == "cuda"
    seconds = []
    for _ in range(args.repeat + 1):
        ids = torch.randint(vocabulary, (args.batch, args.prompt), device=args.device)
        start = time.perf_counter()
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"step_s": seconds[1:], "tokens": args.batch * args.prompt, "peak_bytes": peak}))


main()
