"""tandem train: options from a file, a first adapter, the test set."""
import json
import math
import pathlib

import pytest

from conftest import DEMO_MODEL, run_tandem
from training import QUESTIONS, curve_of, perplexity, raw_tensors, train_some, write_data

AS_MLX_LM = """
model: {model}
train: true
fine_tune_type: lora
optimizer: adamw
optimizer_config: {{adamw: {{betas: [0.8, 0.95], weight_decay: 0.1}}, sgd: {{momentum: 0.5}}}}
data: {data}
num_layers: 2
batch_size: 3
iters: 6
learning_rate: 1e-5
lr_schedule: {{name: cosine_decay, warmup: 2, arguments: [1e-3]}}
lora_parameters: {{keys: [self_attn.o_proj, mlp.down_proj], rank: 4, scale: 10.0, dropout: 0.0}}
resume_adapter_file: null
grad_checkpoint: True
mask_prompt: false
report_to: null
"""
AS_FLAGS = ["--learning-rate", 1e-3, "--num-layers", 2, "--batch-size", 3, "--iters", 6, "--beta1", 0.8, "--beta2", 0.95,
            "--weight-decay", 0.1, "--lr-schedule", "cosine", "--warmup", 2, "--lora-keys", "self_attn.o_proj,mlp.down_proj",
            "--lora-rank", 4, "--lora-scale", 10, "--grad-checkpoint"]
STILL = ["--num-layers", 2, "--iters", 1, "--learning-rate", 0]
REPORTS = ["--steps-per-report", 1, "--json", "--device", "cpu"]


def train(*arguments):
    done = run_tandem("train", *arguments, *REPORTS)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def test_mlx_lms_file_is_read_as_its_options(tmp_path):
    data = write_data(tmp_path / "data", QUESTIONS)
    file = tmp_path / "config.yaml"
    file.write_text(AS_MLX_LM.format(model=DEMO_MODEL, data=data))
    train("--config", file, "--out", tmp_path / "by-file")
    train(DEMO_MODEL, "--data", data, "--out", tmp_path / "by-flags", *AS_FLAGS)
    assert raw_tensors(tmp_path / "by-file") == raw_tensors(tmp_path / "by-flags")
    assert curve_of(tmp_path / "by-file") == curve_of(tmp_path / "by-flags")


def test_of_an_option_given_twice_the_last_counts(tmp_path):
    data = write_data(tmp_path / "data", QUESTIONS)
    summary = train("--model", DEMO_MODEL, "--train", "--data", data, "--iters", 9, "--iters", 2, "--out", tmp_path / "out")
    assert summary["iterations"] == 2


def test_the_command_line_comes_before_the_file(tmp_path):
    data = write_data(tmp_path / "data", QUESTIONS)
    file = tmp_path / "config.json"  # JSON is YAML
    file.write_text(json.dumps({"iters": 100, "data": "nowhere", "num-layers": 1, "batch_size": 2}))
    summary = train(DEMO_MODEL, "--data", data, "-c", file, "--iters", 2, "--out", tmp_path / "out")
    assert summary["iterations"] == 2
    assert json.loads((tmp_path / "out/adapter_config.json").read_text())["num_layers"] == 1


def test_a_run_is_repeated_by_the_file_that_it_leaves(tmp_path):
    data = write_data(tmp_path / "data", QUESTIONS)
    train(DEMO_MODEL, "--data", data, "--out", tmp_path / "first", *AS_FLAGS, "--skip-bad-data", "--skip-bad-data", "--iters", 6)
    done = run_tandem("train", "--config", tmp_path / "first/train.yaml", "--out", tmp_path / "second")
    assert done.returncode == 0, done.stderr.decode()
    assert raw_tensors(tmp_path / "first") == raw_tensors(tmp_path / "second")
    assert curve_of(tmp_path / "first") == curve_of(tmp_path / "second")


@pytest.mark.parametrize("text, why", [
    ("iters: 5\nitres: 7\n", 'line 2: there is no option "itres"'),
    ("iters: five\n", "line 1"),
    ("batch_size: 0\n", "line 1: --batch-size"),
    ("optimizer: adamz\n", "line 1: --optimizer"),
    ("lora_parameters:\n  dropout: 0.1\n", "line 2: lora_parameters.dropout 0.1: there is no dropout"),
    ("lora_parameters:\n  alpha: 16\n", 'line 2: there is no option "lora_parameters.alpha"'),
    ("seed: 1\nseed: 2\n", "line 2: seed stands there twice"),
    ("batch_size: {}\n", "line 1: batch_size has no value"), ("batch_size: []\n", "line 1: batch_size has no value"),
    ("lora_rank: 4\nlora_parameters: {rank: 2}\n", "line 2: lora_parameters.rank is given twice"),
    ("optimizer_config: {weight_decay: 0.5}\n", "optimizer_config: {OPTIMIZER: {"),
    ("optimizer_config: {adamW: {betas: [0.9, 0.99]}}\n", "optimizer_config: {OPTIMIZER: {"),
    ("batch_size: {a: 1}\n", 'there is no option "batch_size.a"'),
    ("seed: 1\n---\nseed: 2\n", "several documents"),
    ("seed: -1\n", "line 1: --seed"),
    ("train: false\n", "line 1: train false: tandem train trains"),
    ("lora_parameters: {dropout: [0, 5]}\n", "lora_parameters.dropout takes one value"),
    ("optimizer_config: {adamw: {eps: 1e-6}}\n", "optimizer_config.adamw.eps 1e-6: it is 1e-8 here"),
    ("x: &a {b: *a}\n", "too many options"),
    ("a: &a {x: 1, y: 2}\n" + "".join(f"{b}: &{b} {{x: *{a}, y: *{a}, z: *{a}}}\n" for a, b in zip("abcdef", "bcdefg")), "too many options"),
    ("- iters\n", "no mapping"),
    ("", "no mapping"),
    ("iters: [1, 2\n", "line"),
    ("iters: [[1]]\n", "line 1"),
    ("help: true\n", 'there is no option "help"'),
    ("optimizer_config: {adamw: {betas: [0.9]}}\n", "betas are two numbers")])
def test_what_a_file_has_wrong_is_named(text, why, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    data = write_data(tmp_path / "data", QUESTIONS)
    done = run_tandem("train", DEMO_MODEL, "--data", data, "--config", file, "--out", tmp_path / "out")
    assert done.returncode == 2 and f"--config {file}" in done.stderr.decode() and why in done.stderr.decode(), done.stderr.decode()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["none.yaml", ""])
def test_a_file_that_is_none_is_named(name, tmp_path):
    done = run_tandem("train", DEMO_MODEL, "--data", tmp_path, "--config", tmp_path / name)
    assert done.returncode == 2 and f"--config: {tmp_path / name}" in done.stderr.decode(), done.stderr.decode()


def test_an_optimizer_has_its_own_options(tmp_path):
    data = write_data(tmp_path / "data", QUESTIONS)
    file = tmp_path / "config.yaml"
    file.write_text("optimizer: adamw\noptimizer_config: {adamw: {betas: [0.5, 0.6]}, sgd: {momentum: 0.25, weight_decay: 0.5}}\n")
    for name, how in {"file": ["-c", file, "--optimizer", "sgd"],
                      "flags": ["--optimizer", "sgd", "--beta1", 0.25, "--weight-decay", 0.5]}.items():
        train(DEMO_MODEL, "--data", data, "--out", tmp_path / name, "--num-layers", 1, "--iters", 3, "--learning-rate", 0.01, *how)
    assert raw_tensors(tmp_path / "file") == raw_tensors(tmp_path / "flags")


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_test_set_is_evaluated_at_the_end(ranks, tmp_path):
    ids = [5, 6, 7, 8, 9, 10]
    data = write_data(tmp_path / "data", QUESTIONS)
    write_data(data, [{"ids": ids}] * 3, "test.jsonl")
    (tmp_path / "ids.txt").write_text(" ".join(map(str, ids)))
    out = tmp_path / "out"
    done = train_some(data, out, "--iters", 3, "--test", "--json", "--ranks", ranks)
    found = json.loads(done.stdout)["test_loss"]
    expected = perplexity(DEMO_MODEL, tmp_path / "ids.txt", "--adapter", out, "--activations", "float32")
    assert math.isclose(found, expected, rel_tol=1e-4)
    assert curve_of(out, "test_loss") == [found] and f"test loss {found:.4f}" in done.stderr.decode()
    # Of a run that is done, without a step.
    again = train_some(data, out, "--iters", 3, "--test", "--json", "--resume", "--test-batches", 1, "--batch-size", 4)
    assert math.isclose(json.loads(again.stdout)["test_loss"], found, rel_tol=1e-5)


def test_without_a_test_set_none_is_asked_for(tmp_path):
    done = train_some(write_data(tmp_path / "data", QUESTIONS), tmp_path / "out", "--iters", 3, "--test")
    assert done.returncode == 2 and "test.jsonl cannot be read" in done.stderr.decode()


@pytest.fixture(scope="module")
def first_adapter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    done = train_some(write_data(folder / "data", QUESTIONS), folder / "out", "--iters", 4)
    assert done.returncode == 0, done.stderr.decode()
    return folder / "out/adapters.safetensors"


@pytest.mark.parametrize("split", [[], ["--ranks", 2], ["--ranks", 2, "--parallel", "pp"]])
def test_training_begins_with_an_adapter(split, first_adapter, tmp_path):
    data = write_data(tmp_path / "data", QUESTIONS)
    out = tmp_path / "out"
    train(DEMO_MODEL, "--data", data, "--out", out, *STILL, "--resume-adapter-file", first_adapter, *split)
    assert raw_tensors(out) == raw_tensors(first_adapter.parent)


def test_training_begins_with_an_adapter_of_half_the_bytes(first_adapter, tmp_path):
    mx = pytest.importorskip("mlx.core")
    halved = {name: value.astype(mx.bfloat16) for name, value in mx.load(str(first_adapter)).items()}
    mx.save_safetensors(str(tmp_path / "half.safetensors"), halved)
    train(DEMO_MODEL, "--data", write_data(tmp_path / "data", QUESTIONS), "--out", tmp_path / "out", *STILL,
          "--resume-adapter-file", tmp_path / "half.safetensors")
    found = mx.load(str(tmp_path / "out/adapters.safetensors"))
    assert all(mx.array_equal(found[name], value.astype(mx.float32)) for name, value in halved.items())


@pytest.mark.parametrize("flags, why", [
    (["--num-layers", 1], "too, which this training leaves as it is"), (["--num-layers", 3], "has no tensor"),
    (["--lora-rank", 4], "of shape [192,8], where [192,4] is needed"), (["--method", "dora"], "has no tensor"), (["--method", "full"], "trains no adapter")])
def test_an_adapter_of_another_training_is_refused(flags, why, first_adapter, tmp_path):
    data = write_data(tmp_path / "data", QUESTIONS)
    more = [] if "--num-layers" in flags else ["--num-layers", 2]
    done = run_tandem("train", DEMO_MODEL, "--data", data, "--out", tmp_path / "out", "--iters", 1, "--device", "cpu",
                      "--resume-adapter-file", first_adapter, *more, *flags)
    assert done.returncode == 2 and why in done.stderr.decode(), done.stderr.decode()
    assert not pathlib.Path(tmp_path / "out/adapters.safetensors").exists()
