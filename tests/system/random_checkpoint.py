"""Writes small random checkpoints as Hugging Face lays them out."""
import json
import random
import struct

from safetensors_file import bfloat16_of, write_safetensors

EXPERTS = 4
COMMON = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 192,
          "moe_intermediate_size": 64, "vocab_size": 160, "max_position_embeddings": 512, "rms_norm_eps": 1e-6,
          "rope_theta": 10000.0, "num_experts_per_tok": 2, "norm_topk_prob": True, "dtype": "bfloat16"}
LATENT = {"num_key_value_heads": 4, "q_lora_rank": 96, "kv_lora_rank": 64, "qk_nope_head_dim": 32,
          "qk_rope_head_dim": 16, "v_head_dim": 64, "n_routed_experts": EXPERTS, "n_shared_experts": 2,
          "first_k_dense_replace": 1, "moe_layer_freq": 1, "n_group": 1, "topk_group": 1, "attention_bias": False}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "beta_fast": 32, "beta_slow": 1,
        "mscale": 0.707, "mscale_all_dim": 0.707}
CONFIGS = {
    "deepseek_v3": COMMON | LATENT | {"routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
                                      "topk_method": "noaux_tc"},
    "deepseek_v2": COMMON | LATENT | {"routed_scaling_factor": 1.0, "topk_method": "greedy",
                                      "norm_topk_prob": False, "rope_scaling": YARN},
    "qwen3_moe": COMMON | {"num_key_value_heads": 2, "head_dim": 32, "num_experts": EXPERTS,
                           "decoder_sparse_step": 1, "mlp_only_layers": [0], "tie_word_embeddings": False},
}


def mlp_shapes(prefix, hidden, width):
    return {f"{prefix}.gate_proj.weight": (width, hidden), f"{prefix}.up_proj.weight": (width, hidden),
            f"{prefix}.down_proj.weight": (hidden, width)}


def attention_shapes(prefix, c):
    heads, hidden = c["num_attention_heads"], c["hidden_size"]
    if "kv_lora_rank" not in c:
        head, kv = c["head_dim"], c["num_key_value_heads"]
        return {f"{prefix}.q_proj.weight": (heads * head, hidden), f"{prefix}.k_proj.weight": (kv * head, hidden),
                f"{prefix}.v_proj.weight": (kv * head, hidden), f"{prefix}.o_proj.weight": (hidden, heads * head),
                f"{prefix}.q_norm.weight": (head,), f"{prefix}.k_norm.weight": (head,)}
    latent, nope, rope, value = (c[k] for k in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    return {f"{prefix}.q_a_proj.weight": (c["q_lora_rank"], hidden), f"{prefix}.q_a_layernorm.weight": (c["q_lora_rank"],),
            f"{prefix}.q_b_proj.weight": (heads * (nope + rope), c["q_lora_rank"]),
            f"{prefix}.kv_a_proj_with_mqa.weight": (latent + rope, hidden), f"{prefix}.kv_a_layernorm.weight": (latent,),
            f"{prefix}.kv_b_proj.weight": (heads * (nope + value), latent), f"{prefix}.o_proj.weight": (hidden, heads * value)}


def shapes_of(c):
    hidden = c["hidden_size"]
    shapes = {"model.embed_tokens.weight": (c["vocab_size"], hidden), "model.norm.weight": (hidden,),
              "lm_head.weight": (c["vocab_size"], hidden)}
    for layer in range(c["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.{norm}.weight": (hidden,) for norm in ("input_layernorm", "post_attention_layernorm")}
        shapes |= attention_shapes(f"{prefix}.self_attn", c)
        if layer == 0:
            shapes |= mlp_shapes(f"{prefix}.mlp", hidden, c["intermediate_size"])
            continue
        shapes[f"{prefix}.mlp.gate.weight"] = (EXPERTS, hidden)
        if c["model_type"] == "deepseek_v3":
            shapes[f"{prefix}.mlp.gate.e_score_correction_bias"] = (EXPERTS,)
        for e in range(EXPERTS):
            shapes |= mlp_shapes(f"{prefix}.mlp.experts.{e}", hidden, c["moe_intermediate_size"])
        if "n_shared_experts" in c:
            shapes |= mlp_shapes(f"{prefix}.mlp.shared_experts", hidden, 2 * c["moe_intermediate_size"])
    return shapes


def write_random(folder, family, fp8=False):
    """Matrices of layers in DeepSeek's FP8 (128 x 128 blocks) where asked, all else in bfloat16."""
    rng = random.Random(7)
    config = CONFIGS[family] | {"model_type": family}
    tensors = {}
    for name, shape in shapes_of(config).items():
        count = shape[0] * (shape[1] if len(shape) == 2 else 1)
        if fp8 and ".layers." in name and len(shape) == 2 and not name.endswith(".gate.weight"):
            codes = bytes(rng.choice((0, 128)) + rng.randrange(0x20, 0x58) for _ in range(count))  # up to 16
            blocks = [-(-size // 128) for size in shape]
            scales = [rng.uniform(0.01, 0.05) for _ in range(blocks[0] * blocks[1])]
            tensors[name] = ("F8_E4M3", shape, codes)
            tensors[name + "_scale_inv"] = ("F32", blocks, struct.pack(f"<{len(scales)}f", *scales))
            continue
        norm = len(shape) == 1 and "norm" in name
        values = [1 + rng.gauss(0, 0.1) if norm else rng.gauss(0, 0.15) for _ in range(count)]
        tensors[name] = ("BF16", shape, bfloat16_of(values))
    if fp8:
        config["quantization_config"] = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
    folder.mkdir(parents=True)
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(config))
