#!/usr/bin/env python3
"""Makes tests/golden/NAME/: small random models of DeepSeek-V2 and V3 and Qwen3-MoE, and what transformers computes.

usage: make_moe_families.py OUT_DIR [NAME ...]      (pip install torch transformers)

As make_llama_family.py does, in the same format; ids are chosen free of near ties (clear_choices.py).

Which semantics: transformers 5.24 agrees with DeepSeek's own modelling code (the remote code of V2, as DeepSeek-VL2 has
it; V3's inference code) in all that is used here, and mlx-lm 0.32.2, which is a third implementation, computes the same
logits within 1.3e-5 where it can read the model. Another version of transformers is to be checked anew:
- the softmax scale has the square of yarn's mscale for mscale_all_dim, in V2 too (yarn_apply_mscale);
- rotated dimensions lie in pairs (2i, 2i + 1), unless V3's rope_interleave is false, which is transformers' own;
- the norms of latents (q_a, kv_a) have eps 1e-6 whatever rms_norm_eps says;
- experts outside the chosen groups get -inf in V3 (V3's inference code, transformers 5.24); DeepSeek-VL2's code,
  earlier transformers and mlx-lm give them 0, which differs where biased scores are negative, as in
  deepseek-v3-rope-halves.
Not used, since the programs disagree: V2 with norm_topk_prob, which transformers ignores, and yarn with one mscale.
"""
import argparse
import json
import shutil
from pathlib import Path

import torch
import transformers
from clear_choices import check_effects, clear_golden, load, rewrite_config
from make_llama_family import BASE, write_golden
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

MLA = BASE | dict(hidden_size=48, num_hidden_layers=3, num_key_value_heads=4, intermediate_size=72, kv_lora_rank=24,
                  q_lora_rank=20, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=12, moe_intermediate_size=16,
                  n_routed_experts=8, num_experts_per_tok=2, n_shared_experts=1, first_k_dense_replace=1,
                  rms_norm_eps=1e-6)
V3 = MLA | dict(n_routed_experts=16, num_experts_per_tok=4, n_group=4, topk_group=2, norm_topk_prob=True,
                routed_scaling_factor=2.5, moe_intermediate_size=8, num_nextn_predict_layers=0)
QWEN = BASE | dict(hidden_size=48, num_hidden_layers=3, head_dim=16, num_experts=16, num_experts_per_tok=3,
                   moe_intermediate_size=10, rms_norm_eps=1e-6)
PLAIN_ROPE = {"rope_theta": 10000.0, "rope_type": "default"}


def yarn(mscale, mscale_all_dim, **more):
    return {"factor": 8.0, "original_max_position_embeddings": 32, "beta_fast": 32, "beta_slow": 1,
            "mscale": mscale, "mscale_all_dim": mscale_all_dim} | more


def hub_rope(mscale, mscale_all_dim):
    """As DeepSeek's config.json spell it."""
    return {"rope_theta": 10000, "rope_scaling": yarn(mscale, mscale_all_dim, type="yarn")}


def new_yarn(mscale, mscale_all_dim):
    """As transformers 5 spells it."""
    return yarn(mscale, mscale_all_dim, rope_type="yarn", rope_theta=10000.0)


V2_KEYS = {"scoring_func": "softmax", "moe_layer_freq": 1, "aux_loss_alpha": 0.001, "seq_aux": True, "ep_size": 1}
V3_KEYS = {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1, "ep_size": 1}
# Left out: yarn; all of its mscales.
NO_YARN = ("rope_parameters", PLAIN_ROPE)
NO_SOFTMAX_SCALE = ("rope_parameters", new_yarn(0, 0) | {"attention_factor": 1.0})

# name: type and settings; keys: more keys of config.json, which is spelt as on the hub where these have a
# rope_theta; effects: settings whose replacement must change the logits.
VARIANTS = {
    "deepseek-v2-lite": dict(
        type="deepseek_v2", settings=MLA | dict(
            q_lora_rank=None, n_routed_experts=16, num_experts_per_tok=3, n_shared_experts=2, moe_intermediate_size=10,
            topk_method="greedy", n_group=1, topk_group=1, norm_topk_prob=False, routed_scaling_factor=1.0),
        keys=V2_KEYS | hub_rope(0.707, 0.707),
        effects=[NO_YARN, NO_SOFTMAX_SCALE],
        note="DeepSeek-V2-Lite's keys: q_lora_rank null, greedy, 2 shared experts, yarn with equal mscales"),
    "deepseek-v2": dict(
        type="deepseek_v2", settings=MLA | dict(
            hidden_size=60, num_attention_heads=5, num_key_value_heads=5, n_routed_experts=16, num_experts_per_tok=3,
            moe_intermediate_size=8, n_shared_experts=2, topk_method="group_limited_greedy", n_group=4, topk_group=2,
            norm_topk_prob=False, routed_scaling_factor=16.0),
        keys=V2_KEYS | hub_rope(0.707, 0.707),
        effects=[NO_YARN, NO_SOFTMAX_SCALE, ("topk_group", 4), ("routed_scaling_factor", 1.0)],
        note="DeepSeek-V2's keys: q_lora_rank, group_limited_greedy (2 of 4 groups), factor 16; 5 heads"),
    "deepseek-v2-mscale": dict(
        type="deepseek_v2", settings=MLA | dict(
            topk_method="greedy", n_group=None, topk_group=None, norm_topk_prob=False, routed_scaling_factor=1.0,
            attention_bias=True, rms_norm_eps=1e-3, rope_parameters=new_yarn(1.0, 0.7)),
        keys={}, effects=[
            NO_YARN, NO_SOFTMAX_SCALE, ("rope_parameters", new_yarn(1.0, 0.7) | {"attention_factor": 1.0})],
        note="new spelling; unequal mscales, biases of q_a, kv_a and o, eps 1e-3 except in the latents' norms (1e-6)"),
    "deepseek-v3-yarn": dict(
        type="deepseek_v3", settings=V3 | dict(num_attention_heads=6, num_key_value_heads=6),
        keys=V3_KEYS | hub_rope(1.0, 1.0), bias_dtype=torch.float32,
        effects=[NO_YARN, NO_SOFTMAX_SCALE, ("topk_group", 4), ("routed_scaling_factor", 1.0),
                 ("norm_topk_prob", False), ("rope_interleave", False)],
        note="DeepSeek-V3's keys: yarn, 2 of 4 groups, norm_topk_prob, 6 heads, e_score_correction_bias in float32"),
    "deepseek-v3-mtp": dict(
        type="deepseek_v3", settings=V3 | dict(num_nextn_predict_layers=1, n_group=2, topk_group=1, n_routed_experts=8,
                                               num_experts_per_tok=2),
        keys=V3_KEYS | hub_rope(1.0, 1.0), bias_dtype=torch.float32, mtp=True, effects=[("topk_group", 2)],
        note="two files; layer 3 = num_hidden_layers predicts the token after next, and is to be skipped"),
    "deepseek-v3-rope-halves": dict(
        type="deepseek_v3", settings=V3 | dict(rope_interleave=False, norm_topk_prob=False, first_k_dense_replace=0,
                                               num_hidden_layers=2, rope_parameters=new_yarn(1.0, 0.6)),
        keys={}, bias_shift=-1.5, effects=[
            NO_YARN, NO_SOFTMAX_SCALE, ("rope_interleave", True), ("norm_topk_prob", True)],
        note="rope_interleave false, no norm_topk_prob, unequal mscales, no dense layer; all biased scores are "
             "negative, so experts outside the groups must be out by -inf, not 0"),
    "deepseek-v3-no-q-lora": dict(
        type="deepseek_v3", settings=V3 | dict(
            q_lora_rank=None, n_group=1, topk_group=1, n_routed_experts=8, num_experts_per_tok=3, n_shared_experts=2,
            first_k_dense_replace=2, moe_intermediate_size=16, routed_scaling_factor=2.446, rms_norm_eps=1e-5),
        keys=V3_KEYS | {"rope_theta": 50000.0, "rope_scaling": None},
        effects=[("routed_scaling_factor", 1.0), NO_YARN],
        note="as Moonlight: V3 with q_lora_rank null, one group, plain positions, 2 dense layers, 2 shared experts"),
    "qwen3-moe": dict(
        type="qwen3_moe", settings=QWEN | dict(norm_topk_prob=True),
        keys={"rope_theta": 1000000.0, "rope_scaling": None, "decoder_sparse_step": 1, "mlp_only_layers": []},
        effects=[("norm_topk_prob", False), NO_YARN],
        note="Qwen3-30B-A3B's keys: every layer sparse, norm_topk_prob"),
    "qwen3-moe-sparse-step": dict(
        type="qwen3_moe", settings=QWEN | dict(
            num_hidden_layers=4, num_attention_heads=10, num_key_value_heads=2, head_dim=12,
            num_experts=8, num_experts_per_tok=2, norm_topk_prob=False, decoder_sparse_step=2, mlp_only_layers=[1],
            intermediate_size=72, tie_word_embeddings=True, vocab_size=161),
        keys={}, effects=[("norm_topk_prob", True)],
        note="decoder_sparse_step 2 and mlp_only_layers [1]: only layer 3 sparse; no norm_topk_prob, 10 heads, "
             "tied; num_local_experts, as transformers 5 writes num_experts"),
}


def randomize(model, seed, bias_shift=0.0):
    """As for the llama family, but with routers that tell experts apart, and routed experts of one size together."""
    generator = torch.Generator().manual_seed(seed)
    random = lambda tensor, scale: scale * torch.randn(tensor.shape, generator=generator)
    sigmoid = model.config.model_type == "deepseek_v3"
    gain = min(1.0, 2.0 / getattr(model.config, "routed_scaling_factor", 1.0))
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("e_score_correction_bias"):
            values = bias_shift + random(tensor, 0.2)
        elif name.endswith("inv_freq"):
            continue
        elif "norm" in name:
            values = 1 + random(tensor, 0.2)
        elif name.endswith("bias"):
            values = random(tensor, 0.2)
        else:
            scale = 1.6 if name.endswith("gate.weight") and not sigmoid else 1.3
            values = random(tensor, scale * (gain if "experts.down" in name else 1.0) / tensor.shape[-1] ** 0.5)
        with torch.no_grad():
            tensor.copy_(values)


def hub_spelling(written, keys):
    """config.json as on the hub, rather than as transformers 5 writes it."""
    if "rope_theta" in keys:
        for key in ("rope_parameters", "head_dim", "qk_head_dim", "rope_interleave"):
            if key != "head_dim" or written["model_type"] != "qwen3_moe":
                written.pop(key, None)
        if "num_local_experts" in written:
            written["num_experts"] = written.pop("num_local_experts")
        written["torch_dtype"] = written.pop("dtype", "bfloat16")
    written |= keys


def add_next_token_layer(folder, config, seed):
    """A multi-token-prediction layer as V3's checkpoints have it: a whole layer more, with tensors of its own."""
    main = load_file(folder / "model.safetensors")
    last, new = f"model.layers.{config.num_hidden_layers - 1}.", f"model.layers.{config.num_hidden_layers}."
    generator = torch.Generator().manual_seed(seed + 2000)
    random = lambda like: torch.randn(like.shape, generator=generator).to(like.dtype)
    extra = {name.replace(last, new): random(tensor) for name, tensor in main.items() if name.startswith(last)}
    extra |= {new + "embed_tokens.weight": main["model.embed_tokens.weight"].clone(),
              new + "shared_head.head.weight": main["lm_head.weight"].clone(),
              new + "eh_proj.weight": random(torch.empty(config.hidden_size, 2 * config.hidden_size,
                                                         dtype=torch.bfloat16))}
    for norm in ("enorm", "hnorm", "shared_head.norm"):
        extra[f"{new}{norm}.weight"] = random(main["model.norm.weight"])
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for i, part in enumerate((main, extra), 1):
        file = f"model-0000{i}-of-00002.safetensors"
        save_file(part, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(tensor.nbytes for part in (main, extra) for tensor in part.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def save(variant, folder, seed):
    config = AutoConfig.for_model(variant["type"], **variant["settings"])
    if rope := variant["keys"].get("rope_scaling"):
        config.rope_parameters = rope | {"rope_type": "yarn", "rope_theta": 10000.0}
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomize(model, seed, variant.get("bias_shift", 0.0))
    shutil.rmtree(folder, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if dtype := variant.get("bias_dtype"):
        file = folder / "model.safetensors"
        tensors = {name: tensor.to(dtype) if name.endswith("e_score_correction_bias") else tensor
                   for name, tensor in load_file(file).items()}
        save_file(tensors, file, {"format": "pt"})
    rewrite_config(folder, lambda written: hub_spelling(written, variant["keys"]))
    if variant.get("mtp"):
        add_next_token_layer(folder, config, seed)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", default=list(VARIANTS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    for name in arguments.names:
        folder = arguments.out / name
        for seed in range(100):
            save(VARIANTS[name], folder, seed)
            if golden := clear_golden(load(folder), seed, VARIANTS[name]["note"]):
                break
        else:
            raise SystemExit(f"{name}: no seed of 100 has clear choices")
        check_effects(folder, golden, VARIANTS[name]["effects"])
        margin = golden["least_router_margin"]
        print(f"{name}: seed {seed}, margin {margin}, {write_golden(folder, golden) / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
