#!/usr/bin/env python3
"""Computes the logits of an existing golden.json beside a checkpoint in mlx-community's layout anew, by transformers.

usage: rescore_mlx.py FOLDER ...      (pip install torch transformers)

For tests/golden/tiny-deepseek-v3-mlx-4bit, whose golden.json came from mlx-lm. That does not read rope_parameters, the
only place where this config.json has yarn, and computed with plain positions and without yarn's factor of the softmax:
up to 1.07 away in a logit, though the greedy ids are the same, which is checked here.
"""
import json
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from clear_choices import Routed, load
from float32_twin import write_twin
from mlx_checkpoint import as_transformers_names, dequantised


def rescore(folder):
    with tempfile.TemporaryDirectory() as scratch:
        model = Routed(load(write_twin(folder, Path(scratch), as_transformers_names(dequantised(folder)))))
    file = folder / "golden.json"
    golden, most = json.loads(file.read_text()), 0.0
    for case in golden["cases"]:
        prompt, greedy = case["prompt_ids"], case["greedy_ids"]
        logits = model([prompt + greedy[:-1]])[0][0, len(prompt) - 1:]
        assert logits.argmax(-1).tolist() == greedy, f"{folder.name}: the greedy ids of {prompt} change"
        most = max(most, (logits[0] - torch.tensor(case["last_logits"])).abs().max().item())
        case["last_logits"] = [round(x, 5) for x in logits[0].tolist()]
    golden["made_with"] = (f"transformers {transformers.__version__}, torch {torch.__version__}, float32, eager, "
                           "dequantised weights; greedy ids as from mlx-lm")
    file.write_text(json.dumps(golden))
    print(f"{folder.name}: the largest change of a logit is {most:.2g}")


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    for name in sys.argv[1:]:
        rescore(Path(name))
