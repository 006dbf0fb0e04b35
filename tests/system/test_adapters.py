"""Adapters: LoRA, DoRA and those of experts on every split, beside mlx-lm, fused, and what is wrong with their files."""
import json
import math
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import DEMO_MODEL, ROOT, release_only, run_tandem
from random_checkpoint import write_random
from training import (DORA, LORA, OF_EXPERTS, QUESTIONS, SGD, SPLITS, TEXTS, curve_of, folder_of, perplexity, raw_tensors, train_some,
                      write_data, write_ids)


@pytest.mark.parametrize("split", ["1 rank", "tp 2", "dp 2", "pp 2"])
def test_lora_learns_and_runs_on_any_split(split, tmp_path):
    data = write_data(tmp_path / "data", QUESTIONS)
    write_data(data, QUESTIONS[:4], "valid.jsonl")
    out = tmp_path / "adapters"
    done = run_tandem("train", DEMO_MODEL, "--data", data, "--out", out, "--iters", 60, "--learning-rate", 3e-4, "--num-layers",
                      -1, "--lora-scale", 10, "--json", "--device", "cpu", "--mask-prompt", *SPLITS[split])
    assert done.returncode == 0, done.stderr.decode()
    valid = curve_of(out, "valid_loss")
    assert valid[-1] < valid[0] / 2, valid

    def answer(*more):
        done = run_tandem("run", DEMO_MODEL, "What is 12 + 5?", "--device", "cpu", "--temperature", 0, *more)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    answers = {answer("--adapter", out, "--ranks", ranks) for ranks in (1, 2, 3)}
    assert len(answers) == 1 and answers != {answer()}


def test_another_models_adapter_is_refused(tmp_path):
    model = ROOT / "tests/golden/llama-plain"
    data = write_data(tmp_path / "data", [{"ids": list(range(1, 30))}])
    out = tmp_path / "out"
    done = run_tandem("train", model, "--data", data, "--out", out, "--iters", 1, "--device", "cpu")
    assert done.returncode == 0, done.stderr.decode()
    done = run_tandem("perplexity", DEMO_MODEL, "--ids-file", write_ids(tmp_path), "--adapter", out, "--device", "cpu")
    assert done.returncode == 2 and b"another model's adapter" in done.stderr, done.stderr
    again = run_tandem("train", model, "--data", data, "--out", out, "--iters", 1, "--device", "cpu")
    assert again.returncode == 2 and b"holds adapters.safetensors already" in again.stderr


@pytest.mark.parametrize("name, kind, tolerance", [
    ("demo-model", LORA, 0.02), ("deepseek-v2-lite", LORA, 0.02), ("tiny-llama-mlx-4bit", LORA, 0.3),
    ("demo-model", DORA, 0.02), ("qwen3-moe", DORA, 0.02), ("tiny-llama-mlx-4bit", DORA, 0.3),
    ("qwen3-moe", OF_EXPERTS, 0.02), ("deepseek-v2-lite-mlx-4bit", OF_EXPERTS, 0.3)])
def test_a_fused_model_is_the_model_with_its_adapter(name, kind, tolerance, tmp_path):
    model, out, fused = folder_of(name), tmp_path / "out", tmp_path / "fused"
    ids = [5 + i * i % 97 for i in range(40)]
    data = write_data(tmp_path / "data", [{"ids": ids}])
    (tmp_path / "ids.txt").write_text(" ".join(map(str, ids)))
    done = run_tandem("train", model, "--data", data, "--out", out, "--iters", 12, "--learning-rate", 1e-3, "--device", "cpu",
                      *kind)
    assert done.returncode == 0, done.stderr.decode()
    done = run_tandem("fuse", model, fused, "--adapter", out, "--json")
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout)["matrices"] > 4
    base, adapted, whole = (perplexity(*which) for which in (
        (model, tmp_path / "ids.txt"), (model, tmp_path / "ids.txt", "--adapter", out), (fused, tmp_path / "ids.txt")))
    assert adapted < base * 0.6
    assert abs(whole - adapted) < tolerance * (base - adapted), (base, adapted, whole)
    names = lambda folder: {path.name for path in folder.iterdir() if not path.name.startswith("golden")}
    assert names(fused) == names(model)
    again = run_tandem("fuse", model, fused, "--adapter", out)
    assert again.returncode == 2 and b"holds something already" in again.stderr
    other = folder_of("qwen2")
    wrong = run_tandem("fuse", other, tmp_path / "wrong", "--adapter", out)
    assert wrong.returncode == 2 and (b"no linear product" in wrong.stderr or b"another model's adapter" in wrong.stderr), wrong.stderr
    assert not (tmp_path / "wrong").exists()
    before, after, adapted = raw_tensors(model), raw_tensors(fused), {key[:-7] for key in raw_tensors(out) if key.endswith(".lora_a")}
    changed = {key.rpartition(".")[0] for key in before if before[key] != after[key]}
    of_one = re.compile(r"\.mlp\.experts\.\d+\.")  # an expert, whose adapter is in a stack
    assert before.keys() == after.keys() and {of_one.sub(".mlp.switch_mlp.", key) for key in changed} == adapted


def mlx_lm(*arguments):
    done = subprocess.run([sys.executable, Path(__file__).with_name("mlx_lm_peer.py"), *map(str, arguments)],
                          capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout.splitlines()[-1])


@release_only
@pytest.mark.parametrize("name, kind, layers", [
    ("demo-model", LORA, 2), ("demo-model", LORA, -1), ("demo-model", DORA, 2), ("llama-biased", DORA, -1),
    ("tiny-llama-mlx-4bit", DORA, -1), ("qwen3-moe", DORA, -1), ("deepseek-v2-lite", DORA, -1),
    ("qwen3-moe", OF_EXPERTS, -1), ("deepseek-v2-lite", OF_EXPERTS, 2), ("deepseek-v2-lite-mlx-4bit", OF_EXPERTS, -1)])
def test_mlx_lm_loads_an_adapter(name, kind, layers, tmp_path):
    model, out, ids = folder_of(name), tmp_path / "out", "1,5,100,42,7"
    data = write_data(tmp_path / "data", TEXTS)
    exact = ["--device", "cpu", "--activations", "float32"]
    done = run_tandem("train", model, "--data", data, "--out", out, "--iters", 8, "--learning-rate", 1e-3, "--num-layers",
                      layers, "--device", "cpu", *kind)
    assert done.returncode == 0, done.stderr.decode()
    done = run_tandem("logits", model, "--ids", ids, "--positions", 4, "--adapter", out, *exact)
    ours, theirs = json.loads(done.stdout)["logits"], mlx_lm("adapted", model, out, ids)
    base = json.loads(run_tandem("logits", model, "--ids", ids, "--positions", 4, *exact).stdout)["logits"]
    largest = lambda a, b: max(abs(x - y) for x, y in zip(a, b, strict=True))
    assert largest(ours, theirs) < 1e-3 < 0.1 < largest(ours, base)


# Two runs of which one goes on for a step more, by plain descent: that step's change is the gradient.
@release_only
@pytest.mark.parametrize("name, kind", [("demo-model", DORA), ("tiny-llama-mlx-4bit", DORA), ("llama-biased", DORA),
                                        ("qwen3-moe", OF_EXPERTS)])
def test_the_gradients_of_adapters_are_mlx_lms(name, kind, tmp_path):
    text, rate = list(range(3, 60, 2)), 0.1
    data = write_data(tmp_path / "data", [{"ids": text}])
    for steps in (3, 4):
        done = run_tandem("train", folder_of(name), "--data", data, "--out", tmp_path / str(steps), "--iters", steps,
                          "--device", "cpu", *kind, *SGD, rate)
        assert done.returncode == 0, done.stderr.decode()
    differences = mlx_lm("gradients", folder_of(name), tmp_path / "3", tmp_path / "4", rate, ",".join(map(str, text)))
    assert {"lora_a", "lora_b"} <= differences.keys() and max(differences.values()) < 1e-3, differences


@pytest.mark.parametrize("name, kind", [
    ("demo-model", DORA), ("qwen2", DORA), ("tiny-llama-mlx-4bit", DORA), ("deepseek-v2-lite", DORA),
    ("qwen3-moe", OF_EXPERTS), ("tiny-deepseek-v3-mlx-4bit", OF_EXPERTS), ("tiny-deepseek-v3-mlx-4bit", DORA),
    ("whole experts", OF_EXPERTS)])
def test_adapters_are_alike_on_any_split(name, kind, tmp_path):
    model, data = folder_of(name), write_data(tmp_path / "data", TEXTS)
    if name == "whole experts":  # whose columns are too few to be cut
        write_random(tmp_path / "random", "qwen3_moe")
        model = tmp_path / "model"
        assert run_tandem("quantize", tmp_path / "random", model, "--bits", 4).returncode == 0
    (tmp_path / "ids.txt").write_text(" ".join(map(str, TEXTS[0]["ids"])))
    losses = {}
    for split in ("1 rank", "recomputed", "tp 2", "dp 2", "pp 2"):
        out = tmp_path / split
        done = run_tandem("train", model, "--data", data, "--out", out, "--iters", 6, "--batch-size", 2,
                          "--learning-rate", 1e-3, "--steps-per-report", 1, "--device", "cpu", *kind, *SPLITS[split])
        assert done.returncode == 0, done.stderr.decode()
        losses[split] = curve_of(out)
    for found in losses.values():
        assert all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(losses["1 rank"], found, strict=True)), losses
    assert losses["1 rank"][-1] < losses["1 rank"][0] - 0.1
    exact = ["--adapter", tmp_path / "1 rank", "--activations", "float32"]
    learnt = [perplexity(model, tmp_path / "ids.txt", *exact, *split) for split in ([], ["--ranks", 2], ["--ranks", 2, "--plan", "pp"])]
    assert max(learnt) - min(learnt) < 1e-4 and learnt[0] < perplexity(model, tmp_path / "ids.txt") - 0.1


def test_qlora_is_of_quantised_weights(tmp_path):
    data = write_data(tmp_path / "data", TEXTS)
    refused = run_tandem("train", DEMO_MODEL, "--data", data, "--out", tmp_path / "out", "--method", "qlora")
    assert refused.returncode == 2 and b"tandem quantize" in refused.stderr and not (tmp_path / "out").exists(), refused.stderr
    done = run_tandem("train", folder_of("tiny-llama-mlx-4bit"), "--data", data, "--out", tmp_path / "out", "--method", "qlora",
                      "--iters", 1, "--device", "cpu")
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads((tmp_path / "out/adapter_config.json").read_text())["fine_tune_type"] == "lora"


def test_experts_have_no_dora(tmp_path):
    data = write_data(tmp_path / "data", TEXTS)
    done = run_tandem("train", folder_of("qwen3-moe"), "--data", data, "--out", tmp_path / "out", *DORA, *OF_EXPERTS)
    assert done.returncode == 2 and b"--lora-keys mlp.switch_mlp.gate_proj" in done.stderr, done.stderr


def test_half_an_adapter_is_named(tmp_path):
    data = write_data(tmp_path / "data", QUESTIONS[:4])
    out = tmp_path / "out"
    assert train_some(data, out, "--iters", 1).returncode == 0
    raw = (out / "adapters.safetensors").read_bytes()
    size = struct.unpack_from("<Q", raw)[0]
    header = json.loads(raw[8:8 + size])
    for gone in ("lora_a", "lora_b"):
        name = next(key for key in header if key.endswith(gone))
        text = json.dumps({key.replace(gone, "lora_c") if key == name else key: value for key, value in header.items()}).encode()
        less = json.dumps({key: value for key, value in header.items() if key != name}).encode()
        for case in (text, less):
            (out / "adapters.safetensors").write_bytes(struct.pack("<Q", len(case)) + case + raw[8 + size:])
            done = run_tandem("fuse", DEMO_MODEL, tmp_path / "fused", "--adapter", out)
            assert done.returncode == 2 and b"adapters.safetensors" in done.stderr, done.stderr
            assert not (tmp_path / "fused").exists()


M = "model.layers.5.self_attn.q_proj.m"


# By a run and by fuse, with nothing made.
@pytest.mark.parametrize("change, why", [
    (lambda header: header.pop(M), b"is missing"),
    (lambda header: header.update({M: header[M] | {"shape": [header[M]["shape"][0] // 2, 2]}}), b"has shape [192,2]")])
def test_a_wrong_magnitude_is_named(change, why, tmp_path):
    out = tmp_path / "out"
    assert train_some(write_data(tmp_path / "data", QUESTIONS[:4]), out, "--iters", 1, "--method", "dora").returncode == 0
    raw = (out / "adapters.safetensors").read_bytes()
    size = struct.unpack_from("<Q", raw)[0]
    header = json.loads(raw[8:8 + size])
    change(header)
    text = json.dumps(header).encode()
    (out / "adapters.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size:])
    for command in (["fuse", DEMO_MODEL, tmp_path / "fused"],
                    ["perplexity", DEMO_MODEL, "--ids-file", write_ids(tmp_path), "--device", "cpu"]):
        done = run_tandem(*command, "--adapter", out)
        assert done.returncode == 2 and M.encode() in done.stderr and why in done.stderr, done.stderr
    assert not (tmp_path / "fused").exists()


def test_an_fp8_model_is_not_fused(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"fine_tune_type": "lora", "lora_parameters": {"scale": 1}}')
    (tmp_path / "adapters.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    done = run_tandem("fuse", ROOT / "tests/golden/qwen3-moe-fp8", tmp_path / "out", "--adapter", tmp_path)
    assert done.returncode == 2 and b"FP8" in done.stderr and not (tmp_path / "out").exists(), done.stderr
