"""Damaged models of the newer kinds (FP8, MLX's layouts, experts, latent attention): each is refused with exit code 2 and
one message that names what is wrong, on one rank and on two."""
import json
import shutil

import pytest
from safetensors_file import read_safetensors, write_safetensors
from conftest import ROOT, release_only, run_tandem

FP8, V3, V2, QWEN = "deepseek-v3-fp8", "tiny-deepseek-v3-mlx-4bit", "deepseek-v2", "qwen3-moe"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def config(**changes):
    """Sets fields of config.json; a field that becomes ... is removed."""
    def damage(model):
        file = model / "config.json"
        fields = json.loads(file.read_text()) | changes
        file.write_text(json.dumps({name: value for name, value in fields.items() if value is not ...}))
    return damage


def quantization(**changes):
    def damage(model):
        fields = json.loads((model / "config.json").read_text())
        config(quantization=fields["quantization"] | changes)(model)
    return damage


def fp8(**changes):
    def damage(model):
        fields = json.loads((model / "config.json").read_text())
        config(quantization_config=fields["quantization_config"] | changes)(model)
    return damage


def tensors(change):
    """Rewrites the weights after change(name → (dtype, shape, bytes))."""
    def damage(model):
        table = read_safetensors(model / WEIGHTS)
        change(table)
        write_safetensors(model / WEIGHTS, table)
    return damage


def without(name):
    return tensors(lambda table: table.pop(name))


def first_rows(name, rows):
    """Keeps the first rows of a tensor."""
    def change(table):
        dtype, (all_rows, *rest), data = table[name]
        table[name] = (dtype, [rows, *rest], data[:len(data) // all_rows * rows])
    return tensors(change)


def turned(name):
    """The same bytes, the shape's axes in reverse order."""
    def change(table):
        dtype, shape, data = table[name]
        table[name] = (dtype, shape[::-1], data)
    return tensors(change)


def retyped(name, dtype, wider=1):
    """Another dtype, whose elements have `wider` times the bytes."""
    def change(table):
        _, shape, data = table[name]
        table[name] = (dtype, shape, data * wider)
    return tensors(change)


def index(change):
    """Puts the weights behind an index, whose weight_map is changed by change(map)."""
    def damage(model):
        part = "model-00001-of-00001.safetensors"
        (model / WEIGHTS).rename(model / part)
        names = dict.fromkeys(read_safetensors(model / part), part)
        change(names)
        (model / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return damage


GATE, EXPERT = "model.layers.1.mlp.gate.weight", "model.layers.1.mlp.experts.3.up_proj.weight"
FP8_Q, SWITCH = "model.layers.1.self_attn.q_a_proj.weight", "model.layers.1.mlp.switch_mlp.up_proj"
MLX_Q, EMBED_Q = "model.layers.1.self_attn.q_b_proj", "model.layers.1.self_attn.embed_q"
UNEMBED = "model.layers.1.self_attn.unembed_out"

DAMAGES = {
    # DeepSeek's FP8
    "fp8 scale missing": (FP8, without(FP8_Q + "_scale_inv"), [FP8_Q, "F8_E4M3", "weight_scale_inv"]),
    "fp8 scale turned": (FP8, turned(FP8_Q + "_scale_inv"), [FP8_Q + "_scale_inv", "[2, 1]", "[1, 2]"]),
    "fp8 scale cut": (FP8, first_rows("model.layers.1.mlp.experts.2.down_proj.weight_scale_inv", 1),
                      ["experts.2.down_proj.weight_scale_inv", "[1, 1]", "[2, 1]"]),
    "fp8 scale of integers": (FP8, retyped(FP8_Q + "_scale_inv", "I32"), [FP8_Q + "_scale_inv", "I32"]),
    "fp8 weight of bytes": (FP8, retyped(FP8_Q, "U8"), [FP8_Q, "U8", "F8_E4M3"]),
    "fp8 expert's scale missing": (FP8, without(EXPERT + "_scale_inv"), [EXPERT, "weight_scale_inv"]),
    "fp8 without quantization_config": (FP8, config(quantization_config=...), ["F8_E4M3", "quantization_config"]),
    "fp8 of another kind": (FP8, fp8(fmt="e5m2"), ["e5m2", "e4m3"]),
    "unknown method": (FP8, fp8(quant_method="awq"), ["quantization_config", "awq"]),
    "method missing": (FP8, fp8(quant_method=None), ["quantization_config", "method"]),
    "quantization_config no object": (FP8, config(quantization_config="fp8"), ["quantization_config", '"fp8"']),
    "uneven blocks": (FP8, fp8(weight_block_size=[128, 64]), ["weight_block_size", "[128,64]"]),
    "blocks of nothing": (FP8, fp8(weight_block_size=[0, 0]), ["weight_block_size", "[0,0]"]),
    "blocks of other size": (FP8, fp8(weight_block_size=[64, 64]), ["weight_scale_inv", "config.json makes it"]),
    # MLX's layouts
    "scales missing": (V3, without(MLX_Q + ".scales"), [MLX_Q + ".weight", ".scales"]),
    "biases missing": (V3, without(MLX_Q + ".biases"), [MLX_Q + ".biases"]),
    "scales cut": (V3, first_rows(MLX_Q + ".scales", 383), [MLX_Q + ".scales", "[383, 3]", "[384, 3]"]),
    "biases cut": (V3, first_rows(MLX_Q + ".biases", 383), [MLX_Q + ".biases", "[383, 3]", "[384, 3]"]),
    "scales of integers": (V3, retyped(MLX_Q + ".scales", "I16"), [MLX_Q + ".scales", "I16"]),
    "codes of another type": (V3, retyped(MLX_Q + ".weight", "I32"), [MLX_Q + ".weight", "I32", "U32"]),
    "3 bits": (V3, quantization(bits=3), ["quantization", "3 bits", "4 and 8"]),
    "5 bits": (V3, quantization(bits=5), ["quantization", "5 bits"]),
    "8 bits in place of 4": (V3, quantization(bits=8), ["[1024, 32]", "[1024, 64]"]),
    "bits in words": (V3, quantization(bits="four"), ["bits", '"four"']),
    "groups of 48": (V3, quantization(group_size=48), ["groups of 48", "32, 64 and 128"]),
    "groups of other size": (V3, quantization(group_size=64), ["groups of 64", "config.json"]),
    "groups missing": (V3, quantization(group_size=None), ["group_size"]),
    "mxfp4": (V3, quantization(mode="mxfp4"), ["mode", "mxfp4", "affine"]),
    "mode no text": (V3, quantization(mode=4), ["mode", "4"]),
    "quantization no object": (V3, config(quantization=4), ["quantization", "4"]),
    "quantization absent": (V3, config(quantization=..., quantization_config=...), ["scales", "quantization"]),
    "override of unknown mode": (V3, quantization(**{MLX_Q: {"bits": 4, "group_size": 32, "mode": "nvfp4"}}),
                                 [MLX_Q, "nvfp4"]),
    "override of 6 bits": (V3, quantization(**{MLX_Q: {"bits": 6, "group_size": 64}}), [MLX_Q, "6 bits"]),
    "override against the file": (V3, quantization(**{MLX_Q: {"bits": 8, "group_size": 32}}),
                                  [MLX_Q + ".weight", "[384, 12]", "[384, 24]"]),
    "override of groups that do not divide": (V3, quantization(**{MLX_Q: {"bits": 4, "group_size": 128}}),
                                              [MLX_Q, "96", "128"]),
    "stack lacks experts": (V3, first_rows(SWITCH + ".weight", 7), [SWITCH + ".weight", "[7, 128, 32]", "[8, 128, 32]"]),
    "stack's scales lack experts": (V3, first_rows(SWITCH + ".scales", 7), [SWITCH + ".scales", "[7, 128, 8]"]),
    "stack missing": (V3, without(SWITCH + ".weight"), [SWITCH + ".weight"]),
    "embed_q missing": (V3, without(EMBED_Q + ".weight"), [EMBED_Q + ".weight"]),
    "unembed_out missing": (V3, without(UNEMBED + ".weight"), [UNEMBED + ".weight"]),
    "unembed_out lacks heads": (V3, first_rows(UNEMBED + ".weight", 7), [UNEMBED + ".weight", "[7, 32, 8]"]),
    # Experts and routing
    "expert missing": (QWEN, without(EXPERT), [EXPERT]),
    "expert of another shape": (QWEN, turned(EXPERT), [EXPERT, "[48, 10]", "[10, 48]"]),
    "expert in FP8 alone": (FP8, tensors(lambda table: table.update({EXPERT: (
        "BF16", table[EXPERT][1], 2 * table[EXPERT][2])})), [EXPERT, "BF16"]),
    "more experts than the router": (QWEN, config(num_experts=17), ["config.json"]),
    "fewer experts than the router": (QWEN, config(num_experts=8), ["mlp.gate.weight", "[16, 48]", "[8, 48]"]),
    "router missing": (QWEN, without(GATE), [GATE]),
    "router's correction missing": (V3, without("model.layers.1.mlp.gate.e_score_correction_bias"),
                                    ["e_score_correction_bias"]),
    "no experts": (QWEN, config(num_experts=0), ["num_experts", "0"]),
    "experts not given": (QWEN, config(num_experts=...), ["num_local_experts", "missing"]),
    "negative experts": (FP8, config(n_routed_experts=-8), ["n_routed_experts", "-8"]),
    "more chosen than there are": (QWEN, config(num_experts_per_tok=17), ["num_experts_per_tok", "17", "16"]),
    "none chosen": (QWEN, config(num_experts_per_tok=0), ["num_experts_per_tok", "0"]),
    "chosen in words": (QWEN, config(num_experts_per_tok="two"), ["num_experts_per_tok", '"two"']),
    "groups that do not divide": (FP8, config(n_group=3), ["n_group", "3", "8 experts"]),
    "no groups": (FP8, config(n_group=0), ["n_group", "0"]),
    "more groups chosen": (FP8, config(topk_group=5), ["topk_group", "5"]),
    "too few experts in the groups": (FP8, config(topk_group=1, num_experts_per_tok=3), ["topk_group", "3 of 8"]),
    "unknown choice": (FP8, config(topk_method="best"), ["topk_method", "best"]),
    "unknown scores": (FP8, config(scoring_func="tanh"), ["scoring_func", "tanh"]),
    "scale of nothing": (FP8, config(routed_scaling_factor=0), ["routed_scaling_factor", "0"]),
    "normalised by a number": (FP8, config(norm_topk_prob=1), ["norm_topk_prob", "1"]),
    "dense layers no list": (QWEN, config(mlp_only_layers=1), ["mlp_only_layers", "1"]),
    "dense layer that is none": (QWEN, config(mlp_only_layers=[7]), ["mlp_only_layers", "[7]"]),
    "shared experts beyond measure": (FP8, config(n_shared_experts=65536), ["n_shared_experts", "65536"]),
    "width of experts missing": (FP8, config(moe_intermediate_size=...), ["moe_intermediate_size", "missing"]),
    # Latent attention
    "latent missing": (V2, config(kv_lora_rank=...), ["kv_lora_rank", "missing"]),
    "latent of nothing": (V2, config(kv_lora_rank=0), ["kv_lora_rank", "0"]),
    "latent against the file": (V2, config(kv_lora_rank=32), ["[32, 60]", "[40, 60]"]),
    "latent beyond measure": (V2, config(kv_lora_rank=10**12), ["kv_lora_rank", "1000000000000"]),
    "query's latent negative": (V2, config(q_lora_rank=-1), ["q_lora_rank", "-1"]),
    "query's latent in words": (V2, config(q_lora_rank="none"), ["q_lora_rank", '"none"']),
    "query's latent not in the file": (V2, config(q_lora_rank=None), ["self_attn.q_proj.weight"]),
    "odd rotated part": (V2, config(qk_rope_head_dim=7), ["qk_rope_head_dim", "7"]),
    "heads of values missing": (V2, config(v_head_dim=...), ["v_head_dim", "missing"]),
    "heads of values beyond measure": (V2, config(v_head_dim=1 << 20), ["heads of", "wider"]),
    "layers beyond the file": (V2, config(num_hidden_layers=99), ["config.json asks for"]),
    # Files
    "file of the index absent": (QWEN, index(lambda names: names.update({GATE: "model-00009-of-00009.safetensors"})),
                                 ["model-00009-of-00009.safetensors", "No such file"]),
    "tensor not where the index says": (QWEN, index(lambda names: names.update({"model.more": names[GATE]})),
                                        [INDEX, "model.more"]),
    "tensor not in the index": (QWEN, index(lambda names: names.pop(GATE)), [GATE]),
    "index leads out of the folder": (QWEN, index(lambda names: names.update({GATE: "../x.safetensors"})),
                                      [INDEX, "../x.safetensors"]),
    "index names no file": (QWEN, index(lambda names: names.update({GATE: 3})), [INDEX, GATE, "3"]),
    "index names a folder": (QWEN, index(lambda names: names.update({GATE: "."})), ["regular file"]),
}


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=release_only), 2])
@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_model(tmp_path, name, ranks):
    source, damage, words = DAMAGES[name]
    model = shutil.copytree(ROOT / "tests/golden" / source, tmp_path / "model")
    damage(model)
    done = run_tandem("logits", model, "--ids", "5,6", "--positions", "1", "--ranks", ranks)
    message = done.stderr.decode()
    assert done.returncode == 2, message
    assert done.stdout == b""
    for word in words:
        assert word in message, message
    assert message.count("\n") == 1, message


@pytest.mark.parametrize("source", [FP8, V3, V2, QWEN])
def test_the_same_models_run_undamaged(source):
    done = run_tandem("logits", ROOT / "tests/golden" / source, "--ids", "5,6", "--positions", "1", "--ranks", 2)
    assert done.returncode == 0, done.stderr


def test_an_expert_may_have_another_type(tmp_path):
    model = shutil.copytree(ROOT / "tests/golden" / QWEN, tmp_path / "model")
    retyped(EXPERT, "F32", 2)(model)
    done = run_tandem("logits", model, "--ids", "5,6", "--positions", "1")
    assert done.returncode == 0, done.stderr


def test_overrides_of_tensors_that_the_model_lacks_do_no_harm(tmp_path):
    """mlx-community's files name parts there that conversion has dropped."""
    model = shutil.copytree(ROOT / "tests/golden" / V3, tmp_path / "model")
    quantization(**{"model.layers.61.mlp.gate": {"bits": 8, "group_size": 64}, "vision.proj": False})(model)
    done = run_tandem("logits", model, "--ids", "5,6", "--positions", "1")
    assert done.returncode == 0, done.stderr
