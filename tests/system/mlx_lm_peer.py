"""What mlx-lm makes of a folder of ours; run by test_quantize.py and test_train.py in a process of its own.

usage: mlx_lm_peer.py text FOLDER QUESTION …      greedy answers, a JSON list
       mlx_lm_peer.py same MODEL FOLDER BITS GROUP IDS
           MODEL quantised by mlx-lm against FOLDER, tensor by tensor, and FOLDER's last logits after IDS, in float32
       mlx_lm_peer.py adapted MODEL ADAPTER IDS     the last logits after IDS, in float32
"""
import json
import sys
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten
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


def last_logits(model, ids):
    model.set_dtype(mx.float32)
    return model(mx.array([[int(i) for i in ids.split(",")]]))[0, -1].tolist()


if sys.argv[1] == "text":
    result = texts(sys.argv[2], sys.argv[3:])
elif sys.argv[1] == "adapted":
    result = adapted(*sys.argv[2:])
else:
    result = compare(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]), sys.argv[6])
print(json.dumps(result))
