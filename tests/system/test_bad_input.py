"""Wrong input: exit code 2, a message that names what and which value, nothing on stdout, no stack trace."""
import json
import shutil
import socket
import struct
import subprocess

import pytest
from conftest import DEMO_MODEL, PROGRAM, TIMEOUT_S, run_tandem


@pytest.fixture
def model(tmp_path):
    """A copy of the demo model to damage."""
    return shutil.copytree(DEMO_MODEL, tmp_path / "model")


def edit_config(model, **changes):
    config = json.loads((model / "config.json").read_text())
    config.update(changes)
    (model / "config.json").write_text(json.dumps(config))


def rewrite_header(model, change):
    """Rewrites the safetensors header by `change(header)`, the data as it was."""
    file = model / "model.safetensors"
    raw = file.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8:8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length:])


def cut(file, size):
    file.write_bytes(file.read_bytes()[:size])


Q = "model.layers.0.self_attn.q_proj.weight"
DAMAGES = {
    "no weights": (lambda m: (m / "model.safetensors").unlink(), ["neither model.safetensors nor"]),
    "truncated": (lambda m: cut(m / "model.safetensors", 5_000_000), ["truncated", "model.safetensors"]),
    "empty": (lambda m: cut(m / "model.safetensors", 0), ["too short"]),
    "header longer than the file": (
        lambda m: (m / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b"{}"), ["its header claims"]),
    "offsets beyond the file": (
        lambda m: rewrite_header(m, lambda h: h[Q].update(data_offsets=[0, 1 << 40])), [Q, "truncated or its header"]),
    "offsets against the shape": (
        lambda m: rewrite_header(m, lambda h: h[Q].update(shape=[1, 2])), [Q, "does not take"]),
    "unknown dtype": (lambda m: rewrite_header(m, lambda h: h[Q].update(dtype="F13")), [Q, "F13"]),
    "shape against config": (lambda m: edit_config(m, intermediate_size=700), ["512", "700", "config.json"]),
    "missing tensor": (lambda m: rewrite_header(m, lambda h: h.pop(Q)), [Q]),
    "unknown architecture": (lambda m: edit_config(m, model_type="mamba"), ["model_type", "mamba", "llama"]),
    "NaN in config": (lambda m: edit_config(m, rms_norm_eps=float("nan")), ["config.json", "NaN"]),
    "negative layers": (lambda m: edit_config(m, num_hidden_layers=-3), ["num_hidden_layers", "-3"]),
    "experts that do not divide": (lambda m: edit_config(m, n_group=3), ["n_group", "3"]),
    "unknown rope": (lambda m: edit_config(m, rope_parameters={"rope_type": "spiral"}), ["spiral", "yarn"]),
    "quantized": (lambda m: edit_config(m, quantization={"bits": 3, "group_size": 64}), ["3 bits"]),
    "no config": (lambda m: (m / "config.json").unlink(), ["config.json is missing"]),
    "config is a list": (lambda m: (m / "config.json").write_text("[]"), ["no JSON object"]),
    "no tokenizer": (lambda m: (m / "tokenizer.json").unlink(), ["tokenizer.json"]),
    "damaged tokenizer": (lambda m: cut(m / "tokenizer.json", 1000), ["tokenizer.json"]),
    "damaged template": (lambda m: (m / "chat_template.jinja").write_text("{% if %}"), ["chat_template.jinja"]),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_model(model, name):
    damage, words = DAMAGES[name]
    damage(model)
    done = run_tandem("run", model, "Hi", "--ranks", 2)
    message = done.stderr.decode()
    assert done.returncode == 2, message
    assert done.stdout == b""
    for word in words:
        assert word in message
    assert message.count("\n") <= 2, message


COMMANDS = {
    "missing folder": (["run", "/no/such/folder", "Hi"], ["/no/such/folder"]),
    "name not in the cache": (["run", "some/model", "Hi"], ["some/model", "models--some--model"]),
    "more ranks than heads": (["run", DEMO_MODEL, "Hi", "--ranks", 7], ["7 ranks", "6 query heads"]),
    "no ranks": (["run", DEMO_MODEL, "Hi", "--ranks", 0], ["--ranks"]),
    "ids out of range": (["logits", DEMO_MODEL, "--ids", "5,2048"], ["2048", "0 to 2047"]),
    "negative id": (["logits", DEMO_MODEL, "--ids", "-5"], ["-5"]),
    "no ids": (["logits", DEMO_MODEL, "--ids", "5,x"], ["\"x\"", "--ids"]),
    "position out of range": (["logits", DEMO_MODEL, "--ids", "5", "--positions", "3"], ["position 3"]),
    "prompt longer than the context": (["run", DEMO_MODEL, "word " * 2000], ["context", "1024"]),
    "wrong temperature": (["run", DEMO_MODEL, "Hi", "--temperature", "-1"], ["temperature", "-1"]),
    "unknown option": (["run", DEMO_MODEL, "Hi", "--frobnicate"], ["--frobnicate"]),
    "unknown verb": (["fly"], ["fly"]),
    "no verb": ([], ["tandem: give a verb"]),
    "no model": (["run"], ["tandem: MODEL is required", "tandem run --help"]),
    "no tokens": (["run", DEMO_MODEL, "Hi", "--max-tokens", 0], ["tandem: --max-tokens: 0 is not allowed: give 1 or more"]),
    "rate below 0": (["train", DEMO_MODEL, "--data", "x", "--learning-rate", -1], ["--learning-rate", "-1", "0 or more"]),
    "context of training": (["train", DEMO_MODEL, "--data", "x", "--context", 9], ["--context"]),
    "gpu that is not there": (["run", DEMO_MODEL, "Hi", "--device", "gpu"], ["GPU", "--device cpu"]),
    "core that is none": (["run", DEMO_MODEL, "Hi", "--pin", "x"], ["--pin", "\"x\""]),
    "core that is not there": (["run", DEMO_MODEL, "Hi", "--pin", "1023"], ["core 1023"]),
    "fewer cores than ranks": (["run", DEMO_MODEL, "Hi", "--ranks", 2, "--pin", "0"], ["1 rank, ", "2 run on"]),
    "no threads": (["run", DEMO_MODEL, "Hi", "--threads", 0], ["--threads"]),
    "missing plan": (["run", DEMO_MODEL, "Hi", "--plan", "/no/plan.json"], ["/no/plan.json"]),
    "missing ids file": (["perplexity", DEMO_MODEL, "--ids-file", "/no/ids"], ["/no/ids"]),
    "empty prompt": (["run", DEMO_MODEL], ["no prompt"]),
    "invalid UTF-8": (["run", DEMO_MODEL, b"\xff\xfe"], ["UTF-8"]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_wrong_command(name):
    args, words = COMMANDS[name]
    args = [arg if isinstance(arg, bytes) else str(arg) for arg in args]
    done = run_tandem(*args) if not any(isinstance(arg, bytes) for arg in args) else run_bytes(args)
    message = done.stderr.decode(errors="replace")
    assert done.returncode == 2, message
    assert done.stdout == b""
    for word in words:
        assert word in message


def run_bytes(args):
    return subprocess.run([PROGRAM.encode(), *(a if isinstance(a, bytes) else a.encode() for a in args)],
                          stdin=subprocess.DEVNULL, capture_output=True, timeout=60)


PLANS = {
    "layers in two stages": ([{"layers": [0, 4], "ranks": [{}]}, {"layers": [3, 6], "ranks": [{}]}], ["0 to 4, 3 to 6"]),
    "layers missing": ([{"layers": [0, 5], "ranks": [{}]}], ["0 to 5", "0 to 6"]),
    "share of nothing": ([{"layers": [0, 6], "ranks": [{"share": 0}]}], ["share", "0"]),
    "no ranks": ([{"layers": [0, 6], "ranks": []}], ["ranks"]),
    "option for a host": ([{"layers": [0, 6], "ranks": [{"host": "-oProxyCommand=x"}]}], ["host"]),
}


@pytest.mark.parametrize("name", PLANS)
def test_wrong_plan(tmp_path, name):
    stages, words = PLANS[name]
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"stages": stages}))
    done = run_tandem("run", DEMO_MODEL, "Hi", "--plan", plan)
    message = done.stderr.decode()
    assert done.returncode == 2
    for word in words:
        assert word in message


def test_json_that_nests_too_deep(tmp_path):
    plan = tmp_path / "plan.json"
    plan.write_text('{"stages": ' + "[" * 100_000 + "]" * 100_000 + "}")
    done = run_tandem("run", DEMO_MODEL, "Hi", "--plan", plan)
    assert done.returncode == 2 and b"plan.json is nested deeper than" in done.stderr, done.stderr


def test_a_full_stderr_costs_nothing():
    with open("/dev/full", "w") as full:
        answer = subprocess.run([PROGRAM, "run", DEMO_MODEL, "What is 27 + 15?", "--ranks", "2", "--device", "cpu"],
                                stdout=subprocess.PIPE, stderr=full, timeout=TIMEOUT_S)
        assert answer.returncode == 0 and b"42" in answer.stdout
        assert subprocess.run([PROGRAM, "run", "/no/model", "Hi"], stderr=full, timeout=TIMEOUT_S).returncode == 2


def test_port_in_use():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_tandem("serve", DEMO_MODEL, "--port", port)
    assert done.returncode == 2
    assert str(port) in done.stderr.decode() and "in use" in done.stderr.decode()
    assert b"context:" not in done.stderr  # before the model is loaded
