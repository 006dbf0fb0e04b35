"""Reads a checkpoint in mlx-community's layout as transformers would want it: dequantised, experts and heads apart."""
import json

import numpy as np
import torch
from float32_twin import load_folder


def dequantise(packed, scales, biases, bits, group_size):
    """MLX's affine quantisation, float32: packed [..., columns · bits / 32] uint32, lowest bits first; a scale and
    a bias for each group of columns."""
    words = packed.view(torch.int32).numpy().view(np.uint32)[..., None]
    numbers = (words >> np.arange(0, 32, bits, dtype=np.uint32)) & np.uint32((1 << bits) - 1)
    numbers = numbers.reshape(*packed.shape[:-1], -1, group_size).astype(np.float32)
    whole = numbers * scales.float().numpy()[..., None] + biases.float().numpy()[..., None]
    return torch.from_numpy(whole.reshape(*packed.shape[:-1], -1))


def dequantised(folder):
    """All weights by mlx-lm's names."""
    settings = json.loads((folder / "config.json").read_text())["quantization"]
    tensors, plain = load_folder(folder), {}
    for name, tensor in tensors.items():
        path = name.removesuffix(".weight")
        if path + ".scales" in tensors and name.endswith(".weight"):
            own = settings.get(path, settings)
            plain[name] = dequantise(tensor, tensors[path + ".scales"], tensors[path + ".biases"], own["bits"],
                                     own["group_size"])
        elif not name.endswith((".scales", ".biases")):
            plain[name] = tensor.float()
    return plain


def as_transformers_names(plain):
    """switch_mlp [experts, out, in] becomes a tensor an expert; embed_q [heads, latent, nope] and unembed_out
    [heads, v, latent] become the rows of kv_b_proj, a head after the other."""
    named = {}
    for name, tensor in plain.items():
        if ".switch_mlp." in name:
            for i, expert in enumerate(tensor):
                named[name.replace("switch_mlp", f"experts.{i}")] = expert
        elif ".embed_q." in name:
            values = plain[name.replace("embed_q", "unembed_out")]
            named[name.replace("embed_q", "kv_b_proj")] = torch.cat([tensor.transpose(1, 2), values], 1).flatten(0, 1)
        elif ".unembed_out." not in name:
            named[name] = tensor
    return named
