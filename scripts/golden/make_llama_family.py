#!/usr/bin/env python3
"""Makes tests/golden/NAME/: small random models of the llama family, and what transformers computes from them.

usage: make_llama_family.py OUT_DIR        (pip install torch transformers; made with torch 2.x, transformers 5.x)

Each folder gets config.json, safetensors, and golden.json: for three prompts the logits after the last token and 24
greedy tokens, and the mean negative log-likelihood (nats) of 120 ids. Weights are rounded to their dtype on disk first;
transformers then computes in float32 with eager attention. A seed is taken only if every greedy choice leads by at
least 0.02 and, where the variant stretches positions or slides a window, leaving that out changes the logits.
"""
import argparse
import json
import shutil
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

PROMPT_LENGTHS = (5, 17, 60)
GREEDY_TOKENS = 24
SCORED_TOKENS = 120
LEAST_LEAD = 0.02
LEAST_EFFECT = 0.05

BASE = dict(hidden_size=64, intermediate_size=112, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=160, max_position_embeddings=256, rms_norm_eps=1e-5, tie_word_embeddings=False,
            bos_token_id=0, eos_token_id=1)
# The spelling of position settings before transformers 5.
OLD_ROPE = {"rope_theta": 10000.0, "rope_scaling": None}

# name: (model_type, settings over BASE, rope keys of config.json, dtype on disk, what it exercises)
VARIANTS = {
    "llama-plain": ("llama", dict(hidden_size=96, num_attention_heads=6, num_key_value_heads=6), OLD_ROPE, "bfloat16",
                    "multi-head attention, six heads, config.json in the old spelling"),
    "llama-gqa-6-2": ("llama", dict(hidden_size=48, num_attention_heads=6, head_dim=20, intermediate_size=90,
                                    vocab_size=161), None,
                      "bfloat16", "6 query and 2 key/value heads, head_dim of its own, odd sizes, a sharded checkpoint"),
    "llama3-rope": ("llama", {}, {"rope_theta": 500000.0, "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32}}, "bfloat16", "llama3 rope scaling, old spelling"),
    "llama-linear-rope": ("llama", {}, {"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
                          "bfloat16", "linear rope scaling, the oldest spelling (type)"),
    "llama-yarn": ("llama", {}, {"rope_parameters": {
        "rope_theta": 10000.0, "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32}},
        "bfloat16", "YaRN, new spelling"),
    "llama-yarn-mscale": ("llama", {}, {"rope_parameters": {
        "rope_theta": 10000.0, "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32,
        "beta_fast": 16.0, "beta_slow": 2.0, "mscale": 1.0, "mscale_all_dim": 0.7, "truncate": False}},
        "bfloat16", "YaRN with both mscales, other betas, no truncation"),
    "llama-tied": ("llama", dict(tie_word_embeddings=True), None, "bfloat16", "tied embeddings"),
    "llama-biased": ("llama", dict(attention_bias=True, mlp_bias=True), None, "float32",
                     "biases everywhere, float32 on disk"),
    "mistral": ("mistral", dict(head_dim=16, sliding_window=None), None, "bfloat16", "mistral without a window"),
    "mistral-window": ("mistral", dict(head_dim=16, sliding_window=16), None, "bfloat16", "mistral, a window of 16"),
    "qwen2": ("qwen2", dict(tie_word_embeddings=True), None, "bfloat16", "query/key/value biases, tied embeddings"),
    "qwen2-window": ("qwen2", dict(num_hidden_layers=3, use_sliding_window=True, sliding_window=16,
                                   max_window_layers=1), None, "bfloat16", "a window of 16 from layer 1 on"),
    "qwen3": ("qwen3", dict(num_attention_heads=8, num_key_value_heads=4, head_dim=16), None, "float16",
              "norms of queries and keys, head_dim of its own, float16 on disk"),
    "deepseek-llm": ("llama", dict(num_attention_heads=8, num_key_value_heads=1, pretraining_tp=1,
                                   rms_norm_eps=1e-6), OLD_ROPE, "bfloat16",
                     "the shape and keys of DeepSeek-LLM-67B's config.json, scaled down (8 query heads a key/value head)"),
}


def randomize(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            values = 1 + 0.2 * torch.randn(parameter.shape, generator=generator)
        elif name.endswith("bias"):
            values = 0.2 * torch.randn(parameter.shape, generator=generator)
        else:
            values = 1.3 * torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
        with torch.no_grad():
            parameter.copy_(values)


def load(folder, edit=lambda config: None, **options):
    config = AutoConfig.from_pretrained(folder)
    edit(config)
    return AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32,
                                                attn_implementation="eager", **options).eval()


def save(name, folder, seed):
    model_type, settings, rope, dtype, _ = VARIANTS[name]
    config = AutoConfig.for_model(model_type, **(BASE | settings))
    model = AutoModelForCausalLM.from_config(config)
    randomize(model, seed)
    shutil.rmtree(folder, ignore_errors=True)
    shard = "40KB" if name == "llama-gqa-6-2" else "1GB"
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard)
    (folder / "generation_config.json").unlink(missing_ok=True)
    written = json.loads((folder / "config.json").read_text())
    if rope:
        for key in ("rope_parameters", "rope_theta", "rope_scaling"):
            written.pop(key, None)
        written |= rope
        if "rope_parameters" not in rope:
            written["torch_dtype"] = written.pop("dtype", dtype)
    (folder / "config.json").write_text(json.dumps(written, indent=2) + "\n")


@torch.no_grad()
def logits_of(model, ids):
    return model(torch.tensor([ids])).logits[0].float()


def greedy(model, prompt):
    """The logits after the prompt, greedy tokens, and the smallest lead of a choice."""
    ids, lead, first = list(prompt), float("inf"), None
    for _ in range(GREEDY_TOKENS):
        last = logits_of(model, ids)[-1]
        first = last if first is None else first
        top = last.topk(2)
        lead = min(lead, (top.values[0] - top.values[1]).item())
        ids.append(top.indices[0].item())
    return first, ids[len(prompt):], lead


def plain_positions(config):
    """The same model without stretched positions and windows."""
    theta = config.rope_parameters.get("rope_theta", 10000.0)
    config.rope_parameters = {"rope_theta": theta, "rope_type": "default"}
    if getattr(config, "sliding_window", None):
        config.sliding_window = None
        config.layer_types = ["full_attention"] * config.num_hidden_layers


def make(name, folder, seed):
    """The golden data, or None where the seed will not do."""
    save(name, folder, seed)
    model = load(folder)
    vocabulary = model.config.vocab_size
    generator = torch.Generator().manual_seed(seed + 1000)
    random_ids = lambda count: torch.randint(2, vocabulary, (count,), generator=generator).tolist()
    cases = []
    for length in PROMPT_LENGTHS:
        prompt = random_ids(length)
        last, tokens, lead = greedy(model, prompt)
        if lead < LEAST_LEAD:
            return None
        cases.append({"prompt_ids": prompt, "last_logits": [float(f"{x:.6g}") for x in last.tolist()],
                      "greedy_ids": tokens})
    ids = random_ids(SCORED_TOKENS)
    log_probabilities = logits_of(model, ids).double().log_softmax(-1)
    nll = -log_probabilities[:-1].gather(1, torch.tensor(ids[1:])[:, None]).mean().item()
    if any(word in name for word in ("rope", "yarn", "window")):
        without = logits_of(load(folder, plain_positions), ids)
        assert (without - logits_of(model, ids)).abs().max() > LEAST_EFFECT, f"{name}: the variant changes nothing"
    return {"made_with": f"transformers {transformers.__version__}, torch {torch.__version__}, float32, eager",
            "note": VARIANTS[name][4], "cases": cases, "perplexity": {"ids": ids, "mean_nll": nll}}


def write_golden(folder, golden):
    """golden.json, a case a line."""
    cases = ",\n".join(json.dumps(case) for case in golden.pop("cases"))
    rest = json.dumps(golden)
    (folder / "golden.json").write_text(f'{rest[:-1]}, "cases": [\n{cases}\n]}}\n')
    return sum(file.stat().st_size for file in folder.iterdir())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    for name in VARIANTS:
        folder = out / name
        for seed in range(100):
            if golden := make(name, folder, seed):
                break
        else:
            raise SystemExit(f"{name}: no seed of 100 has clear greedy choices")
        print(f"{name}: seed {seed}, {write_golden(folder, golden) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
