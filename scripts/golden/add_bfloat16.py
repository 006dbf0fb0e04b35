#!/usr/bin/env python3
"""Adds "bfloat16_difference" to the golden.json of each unquantised dense model of tests/golden: how far transformers itself
comes from its float32 logits when it computes in bfloat16, at most, over the prompts. bench/golden.py measures a device that
computes in bfloat16 by it.

usage: add_bfloat16.py tests/golden assets/demo-model        (pip install torch transformers)
"""
import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM


def difference(folder, cases):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="eager").eval()
    worst = 0
    for case in cases:
        with torch.no_grad():
            logits = model(torch.tensor([case["prompt_ids"]])).logits[0, -1].float()
        worst = max(worst, (logits - torch.tensor(case["last_logits"])).abs().max().item())
    return worst


def main():
    golden, demo = map(Path, sys.argv[1:3])
    for file in sorted(golden.glob("*/golden.json")):
        folder = file.parent if (file.parent / "config.json").exists() else demo
        config = json.loads((folder / "config.json").read_text())
        if "quantization" in config or "quantization_config" in config or any("expert" in key for key in config):
            continue
        text = file.read_text()
        data = json.loads(text)
        found = f'"bfloat16_difference": {difference(folder, data["cases"]):.4g}, '
        if "bfloat16_difference" in data:
            sys.exit(f"{file} has it already")
        file.write_text("{" + found + text.lstrip()[1:].lstrip())
        print(file.parent.name, found)


main()
