"""`tandem quantize`: against mlx-lm, against the model it was made of, and what an interruption leaves."""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import (DEMO_MODEL, PROGRAM, ROOT, Server, release_only, right_of_hundred_additions, run_tandem,
                      wait_until)
from random_checkpoint import write_random
from safetensors_file import read_safetensors, write_safetensors

MLX_4BIT = ROOT / "tests/golden/tiny-llama-mlx-4bit"
QUESTIONS = ["What is 29 + 31?", "What is the capital of France?", "Count from 3 to 9."]
STATE = ".tandem-quantize.json"
WINDOW = 192  # tokens


def quantize(model, out, *flags, bits=4):
    return run_tandem("quantize", model, out, "--bits", bits, *flags)


def made(model, out, *flags, bits=4):
    done = quantize(model, out, *flags, "--json", bits=bits)
    assert done.returncode == 0, done.stderr.decode()
    assert not [path for path in out.iterdir() if path.name.startswith(".") or path.suffix == ".incomplete"]
    return json.loads(done.stdout)


def tensors_of(folder):
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    shards = {name: read_safetensors(folder / name) for name in set(index.values())}
    assert {name: shard for shard, tensors in shards.items() for name in tensors} == index
    assert {path.name for path in folder.glob("*.safetensors")} == shards.keys()
    return {name: tensor for tensors in shards.values() for name, tensor in tensors.items()}


def peer(*args):
    done = subprocess.run([sys.executable, Path(__file__).with_name("mlx_lm_peer.py"), *map(str, args)],
                          capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def of_demo(tmp_path_factory):
    """The demo model's folder at so many bits."""
    folder = tmp_path_factory.mktemp("demo")
    folders = {bits: folder / f"{bits}bit" for bits in (4, 8)}
    for bits, out in folders.items():
        made(DEMO_MODEL, out, bits=bits)
    return folders


@pytest.fixture(scope="module")
def large_model(tmp_path_factory):
    """136 MB in matrices of 4 MB."""
    folder = tmp_path_factory.mktemp("large") / "model"
    folder.mkdir()
    config = {"model_type": "llama", "hidden_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 16,
              "intermediate_size": 2048, "vocab_size": 2048, "rms_norm_eps": 1e-6, "max_position_embeddings": 512}
    (folder / "config.json").write_text(json.dumps(config))
    noise = bytearray(random.Random(1).randbytes(2 * 2048 * 1024))
    noise[1::2] = bytes(noise[1::2]).translate(bytes(0x3C | b & 0x80 for b in range(256)))  # bfloat16 around 0.01
    matrix = lambda rows, columns: ("BF16", [rows, columns], bytes(noise[:2 * rows * columns]))
    tensors = {"model.embed_tokens.weight": matrix(2048, 1024), "lm_head.weight": matrix(2048, 1024),
               "model.norm.weight": ("BF16", [1024], bytes(noise[:2048]))}
    for i in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{i}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{norm}.weight"] = ("BF16", [1024], bytes(noise[:2048]))
        for name in "qkvo":
            tensors[f"{prefix}self_attn.{name}_proj.weight"] = matrix(1024, 1024)
        for name, shape in (("gate", (2048, 1024)), ("up", (2048, 1024)), ("down", (1024, 2048))):
            tensors[f"{prefix}mlp.{name}_proj.weight"] = matrix(*shape)
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


def test_is_as_mlx_lm_makes_it(of_demo):
    theirs = peer("same", DEMO_MODEL, of_demo[4], 4, 64, "5,17,80,3")
    assert theirs["different"] == [] and theirs["tensors"] > 100
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (of_demo[4] / name).read_bytes() == (DEMO_MODEL / name).read_bytes()


@release_only
@pytest.mark.parametrize("bits", [4, 8])
def test_mlx_lm_answers_the_same(of_demo, bits):
    ours = [json.loads(run_tandem("run", of_demo[bits], question, "--json").stdout)["text"] for question in QUESTIONS]
    assert peer("text", of_demo[bits], *QUESTIONS) == ours
    assert ours[0] == "29 + 31 = 60."


@pytest.mark.parametrize("family, fp8, bits, group", [
    ("deepseek_v3", False, 4, 32), ("deepseek_v3", False, 8, 64), ("deepseek_v3", True, 4, 64),
    ("deepseek_v2", False, 4, 64), ("qwen3_moe", False, 4, 64), ("qwen3_moe", False, 8, 128)])
def test_every_family_is_as_mlx_lm_makes_it(tmp_path, family, fp8, bits, group):
    write_random(tmp_path / "model", family, fp8)
    made(tmp_path / "model", tmp_path / "out", "--group", group, bits=bits)
    ids = "5,17,80,3,99,42,7"
    theirs = peer("same", tmp_path / "model", tmp_path / "out", bits, group, ids)
    assert theirs["different"] == [] and theirs["tensors"] > 30
    for ranks in (1, 2) if group < 128 else (1,):  # groups of 128 leave so small a model no cut
        done = run_tandem("logits", tmp_path / "out", "--ids", ids, "--positions", 6, "--ranks", ranks)
        assert done.returncode == 0, done.stderr.decode()
        ours = json.loads(done.stdout)["logits"]
        largest = max(abs(a - b) for a, b in zip(ours, theirs["logits"], strict=True))
        assert largest < 1e-3 * max(map(abs, theirs["logits"])), largest


def test_what_does_not_divide_stays_as_it_is(tmp_path):
    write_random(tmp_path / "model", "deepseek_v3")
    report = made(tmp_path / "model", tmp_path / "out", "--group", 128)
    assert report["not_quantized"] == [
        "model.layers.*.mlp.down_proj", "model.layers.*.mlp.switch_mlp.down_proj", "model.layers.*.self_attn.embed_q",
        "model.layers.*.self_attn.q_b_proj", "model.layers.*.self_attn.unembed_out"]
    ids = ("--ids", "5,6,7", "--positions", 2)
    assert run_tandem("logits", tmp_path / "out", *ids).stdout


def test_keep_gives_matrices_other_bits(tmp_path):
    out = tmp_path / "out"
    made(DEMO_MODEL, out, "--keep", "*_proj=8", "--keep", "model.layers.0.*=16", "--keep", "lm_head=16")
    tensors = tensors_of(out)
    config = json.loads((out / "config.json").read_text())["quantization"]
    assert config["model.layers.2.mlp.switch_mlp.up_proj"] == {"bits": 8, "group_size": 64, "mode": "affine"}
    assert tensors["model.layers.2.mlp.switch_mlp.up_proj.weight"][:2] == ("U32", [16, 64, 48])
    assert tensors["model.embed_tokens.weight"][:2] == ("U32", [2048, 24])
    original = read_safetensors(DEMO_MODEL / "model.safetensors")
    for name in ("lm_head.weight", "model.layers.0.mlp.up_proj.weight"):
        assert tensors[name] == original[name]
    assert run_tandem("run", out, QUESTIONS[0]).stdout == b"29 + 31 = 60.\n"
    assert peer("text", out, QUESTIONS[0]) == ["29 + 31 = 60."]


def test_shards_hold_no_more_than_asked(of_demo, tmp_path):
    out = tmp_path / "out"
    report = made(DEMO_MODEL, out, "--max-shard", "600kB")
    shards = sorted(out.glob("*.safetensors"))
    assert [shard.name for shard in shards] == [f"model-{i:05}-of-{len(shards):05}.safetensors"
                                                for i in range(1, len(shards) + 1)]
    assert report["shards"] == len(shards) > 3
    assert max(sum(len(data) for _, _, data in read_safetensors(shard).values()) for shard in shards) <= 600_000
    assert tensors_of(out) == tensors_of(of_demo[4])
    assert run_tandem("run", out, QUESTIONS[0]).stdout == b"29 + 31 = 60.\n"


@release_only
@pytest.mark.parametrize("bits, most", [(8, 0.005), (4, 0.05)])
def test_perplexity_is_near_the_originals(of_demo, bits, most, tmp_path):
    text = tmp_path / "dialogues.txt"
    text.write_bytes(subprocess.run([sys.executable, ROOT / "scripts/golden/make_dialogues.py", "4", "120"],
                                    capture_output=True, check=True).stdout)
    result = lambda model: json.loads(run_tandem("perplexity", model, "--text-file", text, "--window", WINDOW).stdout)
    original, quantised = result(DEMO_MODEL), result(of_demo[bits])
    assert original["tokens"] >= 5000
    change = quantised["perplexity"] / original["perplexity"] - 1
    print(f"{bits} bit: {original['perplexity']:.5f} in bf16, {quantised['perplexity']:.5f}: {change:+.3%}")
    assert abs(change) < most


@release_only
@pytest.mark.parametrize("bits, least", [(8, 99), (4, 97)])
def test_hundred_additions(of_demo, bits, least):
    server = Server("serve", of_demo[bits], "--port", 0)
    try:
        right = right_of_hundred_additions(server)
        print(f"{bits} bit: {right} of 100 additions are right")
        assert right >= least
    finally:
        server.stop()


@release_only
def test_holds_a_tensor_at_a_time(large_model, tmp_path):
    small = made(DEMO_MODEL, tmp_path / "small")["peak_memory_bytes"]
    report = made(large_model, tmp_path / "large")
    model_bytes = (large_model / "model.safetensors").stat().st_size
    assert report["largest_tensor_bytes"] == 2 * 2048 * 1024 and model_bytes > 120e6
    # The tensor, what is made of it, and the heap's slack.
    assert report["peak_memory_bytes"] - small < 6 * report["largest_tensor_bytes"] < model_bytes / 4


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_goes_on_where_it_was_stopped(large_model, tmp_path, how):
    out, whole = tmp_path / "out", tmp_path / "whole"
    flags = ("--max-shard", "2MB")
    process = subprocess.Popen([PROGRAM, "quantize", large_model, out, "--bits", "4", "--json", *flags],
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    shards = lambda: sorted(out.glob("*.safetensors"))
    assert wait_until(lambda: len(shards()) >= 3, 60)
    process.send_signal(how)
    output, error = process.communicate(timeout=20)
    assert process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL), error
    assert not output and (b"goes on" in error or how == signal.SIGKILL)
    assert not (out / "config.json").exists() and not (out / "model.safetensors.index.json").exists()
    assert run_tandem("run", out, "Hi").returncode == 2
    there = {shard: shard.stat().st_ino for shard in shards()}
    assert 3 <= len(there) and (out / STATE).exists()
    assert how == signal.SIGKILL or not list(out.glob("*.incomplete"))

    # A shard that was spoilt meanwhile is made again, the others are kept.
    spoilt = min(there)
    data = bytearray(spoilt.read_bytes())
    data[-1] ^= 1
    spoilt.write_bytes(data)
    report = made(large_model, out, *flags)
    made(large_model, whole, *flags)
    assert tensors_of(out) == tensors_of(whole)
    kept = [shard for shard in there if shard.stat().st_ino == there[shard]]
    assert sorted(kept + [spoilt]) == sorted(there)
    assert report["written_bytes"] < report["bytes"]


def test_a_full_disk_leaves_a_beginning(large_model, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", disk],
                                           capture_output=True).returncode:
        pytest.skip("needs root and tmpfs")
    filler, out = disk / "filler", disk / "out"
    try:
        filler.write_bytes(bytes(30_000_000))
        done = quantize(large_model, out, "--max-shard", "2MB")
        assert done.returncode == 2 and b"not enough room" in done.stderr
        filler.unlink()

        process = subprocess.Popen([PROGRAM, "quantize", large_model, out, "--bits", "4", "--max-shard", "2MB"],
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert wait_until(lambda: list(out.glob("*.safetensors")), 60)
        with pytest.raises(OSError):
            filler.write_bytes(bytes(60_000_000))
        error = process.communicate(timeout=60)[1]
        assert process.returncode == 2 and b"the disk is full" in error
        assert not (out / "config.json").exists() and not list(out.glob("model*.incomplete"))
        filler.unlink()
        assert made(large_model, out, "--max-shard", "2MB")["written_bytes"] < 38e6
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize("make, flags, words", [
    (lambda out: out.write_text("mine"), (), "there is a file of this name"),
    (lambda out: (out.mkdir(), (out / "notes.txt").write_text("mine")), (), "holds something else already (notes.txt)"),
    (lambda out: shutil.copytree(DEMO_MODEL, out), (), "holds a whole model already"),
    (lambda out: None, ("--keep", "lm_heat=8"), "--keep: no matrix that could be quantized has a name like \"lm_heat\""),
    (lambda out: None, ("--keep", "lm_head"), "is not PATTERN=BITS"),
    (lambda out: None, ("--keep", "lm_head=5"), "is not PATTERN=BITS"),
    (lambda out: None, ("--max-shard", "5 apples"), "--max-shard \"5 apples\" is no size"),
    (lambda out: None, ("--max-shard", "0"), "is no size"),
    (lambda out: None, ("--group", "48"), "48"),
])
def test_refuses(tmp_path, make, flags, words):
    out = tmp_path / "out"
    make(out)
    before = sorted(path.name for path in out.iterdir()) if out.is_dir() else None
    done = quantize(DEMO_MODEL, out, *flags)
    assert done.returncode == 2 and words in done.stderr.decode()
    assert before == (sorted(path.name for path in out.iterdir()) if out.is_dir() else None)


def test_refuses_what_is_quantized_already(tmp_path):
    done = quantize(MLX_4BIT, tmp_path / "out", bits=8)
    assert done.returncode == 2 and b"quantized already, 4 bit in groups of 64" in done.stderr
    assert not (tmp_path / "out").exists()


def test_refuses_the_beginning_of_another_result(large_model, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / STATE).write_text(json.dumps({"plan": "another", "made_of": "m, 8 bit, groups of 64", "shards": {}}))
    done = quantize(DEMO_MODEL, out)
    assert done.returncode == 2 and b"beginning of another result (m, 8 bit, groups of 64)" in done.stderr
