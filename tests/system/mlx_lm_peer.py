"""What mlx-lm makes of a folder of ours; run by test_quantize.py and test_train.py in a process of its own.

usage: mlx_lm_peer.py text FOLDER QUESTION …      greedy answers, a JSON list
       mlx_lm_peer.py same MODEL FOLDER BITS GROUP IDS
           MODEL quantised by mlx-lm against FOLDER, tensor by tensor, and FOLDER's last logits after IDS, in float32
       mlx_lm_peer.py adapted MODEL ADAPTER IDS     the last logits after IDS, in float32
       mlx_lm_peer.py gradients MODEL ADAPTER AFTER RATE IDS
           of the loss on IDS by ADAPTER's tensors, against their change to AFTER, a step of plain descent: for each kind of
           tensor the norm of the difference over the gradient's
"""
import json
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm import generate, load
from mlx_lm.utils import load_adapters, load_model, quantize_model


def texts(folder, questions):
    model, tokenizer = load(folder)
    ask = lambda question: tokenizer.apply_chat_template([{"role": "user", "content": question}],
                                                         add_generation_prompt=True)
    return [generate(model, tokenizer, prompt=ask(question), max_tokens=40) for question in questions]


def compare(model_folder, folder, bits, group, ids):
    model, config = load_model(Path(model_folder))
    config.pop("quantization_config", None)  # FP8 is bfloat16 by now
    not_router = lambda path, _: not path.endswith("mlp.gate")
    model, _ = quantize_model(model, config, group, bits, quant_predicate=not_router)
    theirs = dict(tree_flatten(model.parameters()))
    read, _ = load_model(Path(folder))
    ours = dict(tree_flatten(read.parameters()))
    different = [name for name in theirs.keys() | ours.keys()
                 if name not in ours or name not in theirs or ours[name].dtype != theirs[name].dtype
                 or not mx.array_equal(ours[name], theirs[name])]
    return {"tensors": len(ours), "different": sorted(different), "logits": last_logits(read, ids)}


def adapted(model_folder, adapter, ids):
    model, _ = load_model(Path(model_folder))
    return last_logits(load_adapters(model, adapter), ids)


def gradients(model_folder, adapter, after, rate, ids):
    model, _ = load_model(Path(model_folder))
    load_adapters(model, adapter)
    model.set_dtype(mx.float32)
    before, changed = (mx.load(str(Path(folder) / "adapters.safetensors")) for folder in (adapter, after))
    text = mx.array([[int(i) for i in ids.split(",")]])

    def loss(values):
        model.update(tree_unflatten(list(values.items())))
        return nn.losses.cross_entropy(model(text[:, :-1]), text[:, 1:], reduction="mean")

    squares = {}
    for name, gradient in mx.grad(loss)(before).items():
        ours = (before[name] - changed[name]) / float(rate)
        sums = squares.setdefault(name.rpartition(".")[2], [0, 0])
        sums[0] += mx.sum(mx.square(ours - gradient)).item()
        sums[1] += mx.sum(mx.square(gradient)).item()
    return {kind: (difference / whole) ** 0.5 for kind, (difference, whole) in squares.items()}


def last_logits(model, ids):
    model.set_dtype(mx.float32)
    return model(mx.array([[int(i) for i in ids.split(",")]]))[0, -1].tolist()


if sys.argv[1] == "text":
    result = texts(sys.argv[2], sys.argv[3:])
elif sys.argv[1] == "gradients":
    result = gradients(*sys.argv[2:])
elif sys.argv[1] == "adapted":
    result = adapted(*sys.argv[2:])
else:
    result = compare(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]), sys.argv[6])
print(json.dumps(result))
