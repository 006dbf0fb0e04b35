#!/usr/bin/env python3
"""Makes tests/golden/NAME/: small random models quantised and laid out by mlx-lm, as mlx-community's checkpoints are.

usage: make_mlx_layouts.py OUT_DIR [NAME ...]      (pip install torch transformers 'mlx[cpu]' mlx-lm)

mlx-lm converts a model of make_moe_families.py's kind. The golden data are what transformers computes in float32 from
the weights dequantised by NumPy; mlx-lm itself, in float32, must give the same logits and, token by token from its
cache, the same greedy ids. config.json is spelt as on the hub: mlx-lm does not read rope_parameters, and computes with
plain positions where only these are given.
"""
import argparse
import shutil
import tempfile
from pathlib import Path

import mlx.core as mx
import mlx_lm
import torch
import transformers
from clear_choices import check_effects, clear_golden, load
from float32_twin import write_twin
from make_llama_family import write_golden
from make_moe_families import MLA, NO_SOFTMAX_SCALE, NO_YARN, QWEN, V2_KEYS, V3, V3_KEYS, hub_rope, save
from mlx.utils import tree_map
from mlx_checkpoint import as_transformers_names, dequantised
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model, quantize_model, save_config, save_model

LARGEST_DIFFERENCE = 1e-4
MLX_V3 = V3 | dict(hidden_size=64, intermediate_size=64, n_routed_experts=8, num_experts_per_tok=2, q_lora_rank=64,
                   kv_lora_rank=64, qk_nope_head_dim=64, v_head_dim=32, moe_intermediate_size=64)
SMALL_V3 = MLX_V3 | dict(num_hidden_layers=2, moe_intermediate_size=32, q_lora_rank=32, kv_lora_rank=32,
                         qk_nope_head_dim=32)


def mixed(path, _):
    """Overrides of all kinds; the embedding stays as it is without a word in config.json."""
    if path.endswith("down_proj"):
        return {"group_size": 32, "bits": 8}
    return {"lm_head": {"group_size": 128, "bits": 8}, "model.embed_tokens": False,
            "model.layers.0.self_attn.o_proj": False,
            "model.layers.0.mlp.gate_proj": {"group_size": 128, "bits": 4},
            "model.layers.1.self_attn.unembed_out": {"group_size": 32, "bits": 8}}.get(path, True)


def spell_out_left_alone(config):
    config["quantization"]["model.layers.0.self_attn.o_proj"] = False


def without_mode(config):
    config["quantization"].pop("mode")


V3_VARIANT = dict(type="deepseek_v3", keys=V3_KEYS | hub_rope(1.0, 1.0), bias_dtype=torch.float32, bias_shift=1.0,
                  effects=[NO_YARN, NO_SOFTMAX_SCALE])

# As in make_moe_families.py; quantisation: group size and bits; predicate: mlx-lm's choice for each path; edit: of
# config.json in the end.
VARIANTS = {
    "deepseek-v3-mlx-4bit": V3_VARIANT | dict(
        settings=MLX_V3, quantisation=(64, 4), note="4 bit, group 64; switch_mlp, embed_q and unembed_out"),
    "deepseek-v3-mlx-8bit": V3_VARIANT | dict(
        settings=SMALL_V3 | dict(num_attention_heads=5, num_key_value_heads=5, qk_nope_head_dim=16),
        quantisation=(32, 8), edit=without_mode,
        note="8 bit, group 32, no mode in config.json; embed_q not quantised, 16 being less than a group; 5 heads"),
    "deepseek-v3-mlx-mixed": V3_VARIANT | dict(
        settings=SMALL_V3 | dict(hidden_size=128, q_lora_rank=None), quantisation=(32, 4), predicate=mixed,
        edit=spell_out_left_alone,
        note="4 bit, group 32, with 8 bits, group 128 and unquantised layers by config.json; q_lora_rank null"),
    "deepseek-v2-lite-mlx-4bit": dict(
        type="deepseek_v2", settings=MLA | dict(
            hidden_size=64, num_hidden_layers=2, intermediate_size=64, moe_intermediate_size=64, q_lora_rank=None,
            kv_lora_rank=64, v_head_dim=32, num_experts_per_tok=3, n_shared_experts=2, topk_method="greedy", n_group=1,
            topk_group=1, norm_topk_prob=False, routed_scaling_factor=1.0),
        keys=V2_KEYS | hub_rope(0.707, 0.707), quantisation=(64, 4), effects=[NO_YARN, NO_SOFTMAX_SCALE],
        note="4 bit, group 64; V2 keeps kv_b_proj in mlx-lm"),
    "qwen3-moe-mlx-4bit": dict(
        type="qwen3_moe", settings=QWEN | dict(
            num_hidden_layers=2, hidden_size=64, num_attention_heads=6, num_key_value_heads=2, head_dim=32,
            num_experts=8, moe_intermediate_size=64, norm_topk_prob=True),
        keys={"rope_theta": 1000000.0, "rope_scaling": None, "decoder_sparse_step": 1, "mlp_only_layers": []},
        quantisation=(64, 4), effects=[("norm_topk_prob", False)],
        note="4 bit, group 64, routers 8 bit by config.json, as mlx-lm does it; 6 query and 2 key/value heads"),
}


def convert(variant, source, folder):
    model, config = load_model(source)
    group_size, bits = variant["quantisation"]
    model, config = quantize_model(model, config, group_size, bits, quant_predicate=variant.get("predicate"))
    shutil.rmtree(folder, ignore_errors=True)
    save_model(folder, model)
    variant.get("edit", lambda _: None)(config)
    save_config(config, folder / "config.json")


def check_against_mlx_lm(folder, golden):
    """mlx-lm in float32 must agree on a whole prompt at once and on a token at a time."""
    model, _ = load_model(folder)
    model.update(tree_map(lambda x: x.astype(mx.float32) if mx.issubdtype(x.dtype, mx.floating) else x,
                          model.parameters()))
    most = 0.0
    for case in golden["cases"]:
        cache, tokens, ids = make_prompt_cache(model), [], case["prompt_ids"]
        while len(tokens) < len(case["greedy_ids"]):
            logits = model(mx.array([ids]), cache=cache)[0, -1]
            if not tokens:
                most = max(most, mx.abs(logits - mx.array(case["last_logits"])).max().item())
            tokens.append(mx.argmax(logits).item())
            ids = tokens[-1:]
        assert tokens == case["greedy_ids"], f"{folder.name}: mlx-lm goes on otherwise"
    assert most < LARGEST_DIFFERENCE, f"{folder.name}: mlx-lm's logits differ by {most}"
    return most


def make(variant, folder, scratch, seed):
    """The golden data, or None where the seed will not do."""
    source, twin = scratch / "bfloat16", scratch / "twin"
    save(variant, source, seed)
    convert(variant, source, folder)
    write_twin(folder, twin, as_transformers_names(dequantised(folder)))
    made_with = (f"mlx-lm {mlx_lm.__version__} (weights), transformers {transformers.__version__}, torch "
                 f"{torch.__version__}, float32, eager, dequantised weights; mlx-lm in float32 agrees")
    golden = clear_golden(load(twin), seed, variant["note"], made_with)
    if golden:
        check_effects(twin, golden, variant["effects"])
    return golden


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", default=list(VARIANTS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    for name in arguments.names:
        folder = arguments.out / name
        with tempfile.TemporaryDirectory() as scratch:
            for seed in range(100):
                if golden := make(VARIANTS[name], folder, Path(scratch), seed):
                    break
            else:
                raise SystemExit(f"{name}: no seed of 100 has clear choices")
        most = check_against_mlx_lm(folder, golden)
        margin = golden["least_router_margin"]
        size = write_golden(folder, golden)
        print(f"{name}: seed {seed}, margin {margin}, mlx-lm differs by {most:.1e}, {size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
