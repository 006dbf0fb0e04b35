"""tandem train and what it must not take: other folders, other texts, numbers that are none."""
import json
import os
import shutil
import signal
import time

import pytest

from conftest import DEMO_MODEL, TIMEOUT_S, run_tandem
from training import QUESTIONS, TEXTS, begun, curve_of, folder_of, raw_tensors, train_some, workers_of, write_data


def refused(*arguments, **kwargs):
    done = run_tandem(*arguments, **kwargs)
    assert done.returncode == 2, (done.returncode, done.stderr.decode())
    assert b"unexpected" not in done.stderr and b"json.exception" not in done.stderr, done.stderr.decode()
    return done.stderr.decode(errors="replace")


def refused_line(tmp_path, line, *more):
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_bytes(line + b"\n")
    return refused("train", DEMO_MODEL, "--data", data, "--out", tmp_path / "out", "--iters", 1, "--device", "cpu", *more)


@pytest.mark.parametrize("line, why", [
    (b'{"ids": [4294967301, 2, 3]}', "id 4294967301 is not below"), (b'{"ids": [-1, 2]}', "id -1 is not below"),
    (b'{"ids": [1.7, 2.9]}', "1.7 is no token id"), (b'{"ids": [true, false]}', "true is no token id"),
    (b'{"ids": [5, 6]}\0 and more', "zero byte"), (b'{"ids": 5}', "no list of token ids"),
    (b'{"messages": [{"role": "user", "content": "Hi"}], "tools": "abc"}', "no list of tools"),
    (b'{"messages": [{"role": "user"}]}', "no text as its"),
    (b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "is no text"),
    (b"nothing", "line 1: parse error at column 2")])
def test_lines_that_are_no_texts(line, why, tmp_path):
    assert "train.jsonl, line 1: " in (found := refused_line(tmp_path, line)) and why in found


@pytest.mark.parametrize("line", [b'{"text": "Once upon a time"}', b'{"messages": [{"role": "user", "content": "Hi"}]}'])
def test_a_masked_prompt_needs_an_answer(line, tmp_path):
    assert "line 1: --mask-prompt" in refused_line(tmp_path, line, "--mask-prompt")


def test_contents_in_parts_and_calls_of_tools_are_texts(tmp_path):
    calls = [{"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]}]
    made = run_tandem("tokenizer", "train", write_data(tmp_path / "plain", QUESTIONS * 4), tmp_path / "model", "--vocab-size", 512)
    assert made.returncode == 0, made.stderr.decode()
    shutil.copy(DEMO_MODEL / "config.json", tmp_path / "model")
    config = json.loads((DEMO_MODEL / "config.json").read_text())
    (tmp_path / "model/config.json").write_text(json.dumps({**config, "vocab_size": 512, "eos_token_id": 1}))
    losses = {}
    for name, messages in {"parts": [{"role": "user", "content": [{"type": "text", "text": "Hi "}, {"type": "text", "text": "you"}]}, *calls],
                           "whole": [{"role": "user", "content": "Hi you"}, *calls],
                           "none": [{"role": "user", "content": "Hi you"}, {"role": "assistant", "content": ""}]}.items():
        data = write_data(tmp_path / name, [{"messages": messages}])
        done = run_tandem("train", tmp_path / "model", "--init", "--method", "full", "--data", data, "--out", tmp_path / f"{name}-out",
                          "--iters", 1, "--device", "cpu")
        assert done.returncode == 0, done.stderr.decode()
        losses[name] = curve_of(tmp_path / f"{name}-out")
    assert losses["parts"] == losses["whole"] != losses["none"]


def test_a_file_that_cannot_be_read_is_not_taken_for_an_empty_one(tmp_path):
    (tmp_path / "data/train.jsonl").mkdir(parents=True)
    assert "it cannot be read" in refused("train", DEMO_MODEL, "--data", tmp_path / "data", "--out", tmp_path / "out")
    assert "give the folder that holds train.jsonl" in refused("train", DEMO_MODEL, "--data", tmp_path / "none")


@pytest.mark.parametrize("option, value", [
    ("--lora-scale", "1e39"), ("--weight-decay", "1e39"), ("--clip", "1e39"), ("--beta2", "0.99999999"), ("--num-layers", 0), ("--seed", -1)])
def test_numbers_beyond_a_floats(option, value, tmp_path):
    data = write_data(tmp_path / "data", QUESTIONS)
    assert option in refused("train", DEMO_MODEL, "--data", data, "--out", tmp_path / "out", option, value)


def test_a_step_that_is_too_large_is_refused_at_once(tmp_path):
    data = write_data(tmp_path / "data", [{"ids": [7] * 250}] * 4)
    assert "a smaller --batch-size" in refused("train", DEMO_MODEL, "--data", data, "--out", tmp_path / "out",
                                               "--grad-accumulation-steps", 20000)


@pytest.mark.parametrize("out", ["o\udcff", "", "x" * 300])
def test_folders_that_cannot_be(out, tmp_path):
    data = write_data(tmp_path / "data", QUESTIONS)
    refused("train", DEMO_MODEL, "--data", data, "--out", tmp_path / out if out else "", "--iters", 1, "--device", "cpu")


def test_a_models_folder_is_not_trained_into(tmp_path):
    data = write_data(tmp_path / "data", TEXTS)
    model = shutil.copytree(folder_of("tiny-llama-mlx-4bit"), tmp_path / "model")
    before = {file.name: file.read_bytes() for file in model.iterdir()}
    assert "the model's own folder" in refused("train", model, "--data", data, "--out", model, "--method", "full")
    # Another one's weights.
    other = shutil.copytree(folder_of("tiny-llama-mlx-4bit"), tmp_path / "other")
    (other / "model.safetensors").rename(other / "model-00001-of-00001.safetensors")
    held = {file.name: file.read_bytes() for file in other.iterdir()}
    assert "of another model" in refused("train", model, "--data", data, "--out", other, "--method", "full")
    assert {file.name: file.read_bytes() for file in model.iterdir()} == before
    assert {file.name: file.read_bytes() for file in other.iterdir() if file.name != ".lock"} == held


def test_a_resumed_run_has_its_model_and_its_texts(tmp_path):
    data, out = write_data(tmp_path / "data", QUESTIONS), tmp_path / "out"
    assert train_some(data, out, "--iters", 2).returncode == 0
    fewer = write_data(tmp_path / "fewer", QUESTIONS[:-1])
    assert "began with other texts" in refused("train", DEMO_MODEL, "--data", fewer, "--out", out, "--num-layers", 2, "--iters", 3, "--resume")
    other = shutil.copytree(DEMO_MODEL, tmp_path / "other")
    weights = other / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[5_000_000:5_400_000] = bytes(400_000)
    weights.write_bytes(raw)
    assert "began with another model" in refused("train", other, "--data", data, "--out", out, "--num-layers", 2, "--iters", 3, "--resume")
    moved = shutil.copytree(DEMO_MODEL, tmp_path / "moved")
    done = run_tandem("train", moved, "--data", data, "--out", out, "--num-layers", 2, "--iters", 3, "--resume", "--device", "cpu")
    assert done.returncode == 0, done.stderr.decode()


def test_a_folder_has_one_run_at_a_time(tmp_path):
    data, out = write_data(tmp_path / "data", QUESTIONS), tmp_path / "out"
    first = begun(data, out)
    assert "another run is writing there" in refused("train", DEMO_MODEL, "--data", data, "--out", out, "--iters", 1, "--resume")
    first.send_signal(signal.SIGINT)
    first.stderr.read()
    assert first.wait(TIMEOUT_S) == 130


# Rank 0 does nothing any more: the group's own deadline is a minute.
def test_ctrl_c_twice_ends_a_run_whose_worker_is_stopped(tmp_path):
    data, out = write_data(tmp_path / "data", QUESTIONS), tmp_path / "out"
    run = begun(data, out)
    (worker,) = workers_of(run.pid)
    os.kill(worker, signal.SIGSTOP)
    start = time.monotonic()
    for _ in range(2):
        run.send_signal(signal.SIGINT)
        time.sleep(0.5)
    run.stderr.read()
    assert run.wait(TIMEOUT_S) == 130 and time.monotonic() - start < 30


def test_what_a_kill_wrote_twice_stands_there_once(tmp_path):
    data, out = write_data(tmp_path / "data", QUESTIONS), tmp_path / "out"
    reports = ["--steps-per-report", 1, "--save-every", 4]
    assert train_some(data, out, "--iters", 4, *reports).returncode == 0
    with (out / "metrics.jsonl").open("a") as file:  # of steps after the checkpoint, and half a line
        file.write('{"step": 5, "train_loss": 1.0}\n{"step": 6, "tr')
    assert train_some(data, out, "--iters", 6, "--resume", *reports).returncode == 0
    assert train_some(data, tmp_path / "whole", "--iters", 6, *reports).returncode == 0
    assert curve_of(out, "step") == [1, 2, 3, 4, 5, 6] and curve_of(out) == curve_of(tmp_path / "whole")
    assert raw_tensors(out) == raw_tensors(tmp_path / "whole")


@pytest.mark.parametrize("scale, last_number, why", [("1e39", b"", "the scale 1e+39 is too large"), ("2.0", b"\0\0\xc0\x7f", "are not finite"),
                                                     ("2.0", None, "it is no adapter's")])
def test_adapters_that_are_none(scale, last_number, why, tmp_path):
    data, out = write_data(tmp_path / "data", QUESTIONS), tmp_path / "out"
    assert train_some(data, out, "--iters", 1).returncode == 0
    file, config = out / "adapters.safetensors", out / "adapter_config.json"
    raw = file.read_bytes()
    if last_number is None:  # all of no rows
        header = {name: {**info, "shape": [info["shape"][0], 0], "data_offsets": [0, 0]}
                  for name, info in json.loads(raw[8:8 + int.from_bytes(raw[:8], "little")]).items() if name != "__metadata__"}
        text = json.dumps(header).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text)
    else:
        file.write_bytes(raw[:len(raw) - len(last_number)] + last_number)
    parameters = {**json.loads(config.read_text()), "lora_parameters": {"rank": 8, "scale": 0.125}}
    config.write_text(json.dumps(parameters).replace("0.125", scale))
    (tmp_path / "ids.txt").write_text("5 6 7")
    assert why in refused("fuse", DEMO_MODEL, tmp_path / "fused", "--adapter", out)
    assert why in refused("perplexity", DEMO_MODEL, "--ids-file", tmp_path / "ids.txt", "--adapter", out, "--device", "cpu")
