#!/usr/bin/env python3
"""Makes tests/golden/gradients.json: gradients that PyTorch's autograd computes through transformers, in float32, of the
mean negative log-likelihood over three texts of random ids, for small golden models and the demo model.

usage: make_gradients.py tests/golden assets/demo-model        (pip install torch transformers)

Of each tensor the file holds the gradient's norm and its values at a few places, flat indices spread over it.
"""
import json
import random
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

MODELS = ["llama-gqa-6-2", "llama-tied", "llama-biased", "qwen2", "mistral-window", "deepseek-v2-lite",
          "deepseek-v3-yarn", "qwen3-moe", "demo-model"]
LENGTHS = (24, 17, 40)
PLACES = 6


def as_in_files(model):
    """(name, gradient) as checkpoints name them: transformers stacks experts, gate over up."""
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        if gradient is None:
            continue
        stem, _, kind = name.rpartition(".")
        if not stem.endswith(".experts"):
            yield name, gradient
            continue
        for expert, part in enumerate(gradient):
            names = ["gate_proj", "up_proj"] if kind == "gate_up_proj" else [kind]
            for one, rows in zip(names, part.chunk(len(names))):
                yield f"{stem}.{expert}.{one}.weight", rows


def gradients_of(folder):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager",
                                                 experts_implementation="eager")
    model.train()
    draw = random.Random(f"gradients of {folder.name}")
    texts = [[draw.randrange(model.config.vocab_size) for _ in range(length)] for length in LENGTHS]
    summed, tokens = 0, 0
    for ids in texts:
        logits = model(torch.tensor([ids])).logits[0, :-1].double()
        summed = summed + torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum")
        tokens += len(ids) - 1
    loss = summed / tokens
    loss.backward()
    tensors = {}
    for name, gradient in as_in_files(model):
        flat = gradient.flatten().double()
        places = sorted({draw.randrange(flat.numel()) for _ in range(PLACES)})
        tensors[name] = {"norm": flat.norm().item(),
                         "at": places, "values": [flat[i].item() for i in places]}
    return {"texts": texts, "loss": loss.item(), "tensors": tensors}


def main():
    golden, demo = map(Path, sys.argv[1:3])
    found = {name: gradients_of(demo if name == "demo-model" else golden / name) for name in MODELS}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(found[name])}" for name in MODELS)
    (golden / "gradients.json").write_text("{" + lines + "}\n")


main()
