#!/usr/bin/env python3
"""Makes tests/golden/NAME/: small random models in DeepSeek's FP8, and what transformers computes from them in float32.

usage: make_fp8.py OUT_DIR [NAME ...]      (pip install torch transformers)

FP8 as in DeepSeek-V3's checkpoints: every projection's weight is float8_e4m3fn; beside it weight_scale_inv has a number
for each block of 128 x 128, blocks at the right and lower edge being smaller, by which the block's weights are to be
multiplied. Embedding, lm_head, routers and norms stay bfloat16. Blocks differ in size of their numbers by up to 16, so
that a scale taken for its neighbour shows. The golden data come from the weights multiplied out in float32; activations
are not rounded.
"""
import argparse
import tempfile
from pathlib import Path

import torch
import transformers
from clear_choices import check_effects, clear_golden, load, rewrite_config
from float32_twin import load_folder, write_twin
from make_llama_family import write_golden
from make_moe_families import NO_SOFTMAX_SCALE, NO_YARN, QWEN, V3, V3_KEYS, hub_rope, save
from safetensors.torch import save_file

BLOCK = 128
LARGEST = torch.finfo(torch.float8_e4m3fn).max

VARIANTS = {
    "deepseek-v3-fp8": dict(
        type="deepseek_v3", scale_dtype=torch.float32, bias_dtype=torch.float32, settings=V3 | dict(
            hidden_size=136, intermediate_size=140, num_attention_heads=6, num_key_value_heads=6, n_routed_experts=8,
            num_experts_per_tok=2, moe_intermediate_size=20),
        keys=V3_KEYS | hub_rope(1.0, 1.0), effects=[NO_YARN, NO_SOFTMAX_SCALE],
        note="DeepSeek's FP8: 128 x 128 blocks, partial ones at both edges, float32 scales"),
    "qwen3-moe-fp8": dict(
        type="qwen3_moe", scale_dtype=torch.bfloat16, settings=QWEN | dict(
            num_hidden_layers=2, hidden_size=64, num_attention_heads=9, num_key_value_heads=3, num_experts=8,
            norm_topk_prob=True),
        keys={"rope_theta": 1000000.0, "rope_scaling": None, "decoder_sparse_step": 1, "mlp_only_layers": []},
        effects=[("norm_topk_prob", False)], note="Qwen's FP8: bfloat16 scales, 9 query and 3 key/value heads"),
}


def spread(scales, weight):
    """A number for each block, as large as its weight."""
    return scales.float().repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[:weight.shape[0], :weight.shape[1]]


def quantise(weight, scale_dtype):
    """float8 weights and the scales to multiply them by."""
    rows, columns = (-(-size // BLOCK) for size in weight.shape)
    padded = torch.zeros(rows * BLOCK, columns * BLOCK)
    padded[:weight.shape[0], :weight.shape[1]] = weight
    largest = padded.view(rows, BLOCK, columns, BLOCK).abs().amax((1, 3))
    scales = (largest / LARGEST).to(scale_dtype)
    # A scale rounded down would take the largest weight beyond float8's range.
    return (weight / spread(scales, weight)).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scales


def with_uneven_blocks(weight, generator):
    """The blocks' sizes spread over a factor of 16, about the weight's own."""
    shape = [-(-size // BLOCK) for size in weight.shape]
    if max(shape) == 1:
        return weight
    return weight * spread(4.0 ** (2 * torch.rand(shape, generator=generator) - 1), weight)


def save_fp8(variant, folder, twin, seed):
    save(variant, folder, seed)
    generator = torch.Generator().manual_seed(seed + 3000)
    written, plain = {}, {}
    for name, tensor in sorted(load_folder(folder).items()):
        written[name] = plain[name] = tensor
        if not name.endswith("_proj.weight") and "_proj_with_mqa" not in name:
            continue
        written[name], scales = quantise(with_uneven_blocks(tensor.float(), generator), variant["scale_dtype"])
        written[name + "_scale_inv"] = scales
        plain[name] = written[name].float() * spread(scales, tensor)
    save_file(written, folder / "model.safetensors", {"format": "pt"})
    quantisation = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
                    "weight_block_size": [BLOCK, BLOCK]}
    rewrite_config(folder, lambda config: config.update(quantization_config=quantisation))
    return write_twin(folder, twin, plain)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", default=list(VARIANTS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    made_with = (f"transformers {transformers.__version__}, torch {torch.__version__}, float32, eager, "
                 "dequantised weights")
    for name in arguments.names:
        variant, folder = VARIANTS[name], arguments.out / name
        with tempfile.TemporaryDirectory() as scratch:
            for seed in range(100):
                twin = save_fp8(variant, folder, Path(scratch) / name, seed)
                if golden := clear_golden(load(twin), seed, variant["note"], made_with):
                    break
            else:
                raise SystemExit(f"{name}: no seed of 100 has clear choices")
            check_effects(twin, golden, variant["effects"])
        margin = golden["least_router_margin"]
        print(f"{name}: seed {seed}, margin {margin}, {write_golden(folder, golden) / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
