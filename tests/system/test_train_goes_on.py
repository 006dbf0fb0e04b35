"""tandem train that is stopped, resumed or loses its workers ends as an undisturbed run does."""
import json
import os
import re
import signal
import subprocess

import pytest
from conftest import DEMO_MODEL, PROGRAM, TIMEOUT_S, run_tandem
from training import DORA, LORA, QUESTIONS, begun, curve_of, train_some, workers_of, write_data


def test_the_scale_of_a_float16_loss_outlives_a_stop(tmp_path):
    data = write_data(tmp_path / "data", QUESTIONS)
    for name, iterations in {"whole": [16], "parts": [12, 16]}.items():
        for last in iterations:
            done = train_some(data, tmp_path / name, "--dtype", "float16", "--iters", last, "--resume")
            assert done.returncode == 0, done.stderr.decode()
    whole, parts = ((tmp_path / name / "adapters.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts


# What is held back of a gradient is dropped where a checkpoint is written, so a stop elsewhere makes another run.
def test_gradients_that_travel_in_half_the_bytes_go_on_bit_for_bit(tmp_path):
    data = write_data(tmp_path / "data", QUESTIONS)
    for name, iterations in {"whole": [7], "parts": [4, 7], "others": [5, 7]}.items():
        for last in iterations:
            done = train_some(data, tmp_path / name, "--iters", last, "--ranks", 2, "--parallel", "dp", "--resume",
                              "--wire", "bfloat16")
            assert done.returncode == 0, done.stderr.decode()
    whole, parts, others = ((tmp_path / name / "adapters.safetensors").read_bytes() for name in ("whole", "parts", "others"))
    assert whole == parts != others


@pytest.mark.parametrize("how", [("adafactor",), ("adafactor", "--beta1", 0.9), ("muon",), ("adamw", "--optimizer-bits", 8)])
def test_each_optimizer_goes_on_bit_for_bit(how, tmp_path):
    data = write_data(tmp_path / "data", QUESTIONS)
    for name, iterations in {"whole": [7], "parts": [3, 7]}.items():
        for last in iterations:
            done = train_some(data, tmp_path / name, "--iters", last, "--ranks", 2, "--resume", "--optimizer", *how)
            assert done.returncode == 0, done.stderr.decode()
    whole, parts = ((tmp_path / name / "adapters.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts


@pytest.mark.parametrize("kind", [LORA, DORA])
def test_stopped_and_resumed_equals_one_run(kind, tmp_path):
    data = write_data(tmp_path / "data", QUESTIONS)
    assert train_some(data, tmp_path / "whole", "--iters", 11, "--ranks", 2, *kind).returncode == 0
    assert train_some(data, tmp_path / "parts", "--iters", 5, "--ranks", 2, *kind).returncode == 0
    refused = train_some(data, tmp_path / "parts", "--iters", 11, "--ranks", 2, *kind)
    assert refused.returncode == 2 and b"--resume" in refused.stderr
    other = train_some(data, tmp_path / "parts", "--iters", 11, "--resume", "--seed", 3, *kind)
    assert other.returncode == 2 and b"--seed" in other.stderr
    assert train_some(data, tmp_path / "parts", "--iters", 11, "--ranks", 2, "--resume", *kind).returncode == 0
    again = train_some(data, tmp_path / "parts", "--iters", 11, "--resume", *kind)
    assert again.returncode == 0 and b"has 11 steps already" in again.stderr
    whole, parts = ((tmp_path / name / "adapters.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts


def test_a_result_trained_on_is_a_run_of_its_own(tmp_path):
    data, full = write_data(tmp_path / "data", QUESTIONS), ["--method", "full", "--device", "cpu"]
    first = ["train", DEMO_MODEL, "--data", data, "--out", tmp_path / "first", "--iters", 1, "--save-dtype", "float32"]
    assert run_tandem(*first, *full).returncode == 0
    assert {json.loads((tmp_path / "first/config.json").read_text())[key] for key in ("dtype", "torch_dtype")} == {"float32"}
    then = ["train", tmp_path / "first", "--data", data, "--out", tmp_path / "then", "--seed", 5]
    for last in (2, 3):
        done = run_tandem(*then, *full, "--iters", last, "--resume")
        assert done.returncode == 0, done.stderr.decode()
    assert curve_of(tmp_path / "then", "step") == [2, 3]  # none of the first run's
    assert [file.name for file in (tmp_path / "then").glob("checkpoint*")] == ["checkpoint-000003.safetensors"]


def test_adapters_go_on_as_they_began(tmp_path):
    data = write_data(tmp_path / "data", QUESTIONS)
    assert train_some(data, tmp_path / "out", "--iters", 1, "--lora-scale", 10).returncode == 0
    done = train_some(data, tmp_path / "out", "--iters", 2, "--resume")
    assert done.returncode == 2 and b"--lora-scale 10.0, not 20.0" in done.stderr, done.stderr


# As a disk that fills up after the first weights leaves it; and a checkpoint that a kill left beside the next one.
def test_a_run_without_a_checkpoint_begins_again(tmp_path):
    data, out = write_data(tmp_path / "data", QUESTIONS), tmp_path / "out"
    assert train_some(data, out, "--iters", 2).returncode == 0
    before = (out / "adapters.safetensors").read_bytes()
    (out / "checkpoint-000002.safetensors").unlink()
    assert train_some(data, out, "--iters", 2).returncode == 2
    assert train_some(data, out, "--iters", 2, "--resume").returncode == 0
    assert (out / "adapters.safetensors").read_bytes() == before
    assert curve_of(out, "step") == [2]
    (out / "checkpoint-000001.safetensors").write_bytes(b"")
    assert train_some(data, out, "--iters", 3, "--resume").returncode == 0
    assert [file.name for file in out.glob("checkpoint*")] == ["checkpoint-000003.safetensors"]


def test_ctrl_c_stops_after_a_step_that_resume_goes_on_from(tmp_path):
    data, out = write_data(tmp_path / "data", QUESTIONS), tmp_path / "out"
    process = begun(data, out)
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait(TIMEOUT_S) == 130
    (step,) = re.findall(r"stopped after step (\d+); --resume goes on", rest)
    assert (out / f"checkpoint-{int(step):06}.safetensors").exists()


def test_killed_workers_cost_no_step(tmp_path):
    data = write_data(tmp_path / "data", QUESTIONS)
    assert train_some(data, tmp_path / "whole", "--iters", 40, "--ranks", 2).returncode == 0
    process = subprocess.Popen(
        [PROGRAM, "train", DEMO_MODEL, "--data", data, "--out", tmp_path / "killed", "--learning-rate", "1e-3",
         "--num-layers", "2", "--save-every", "4", "--iters", "40", "--ranks", "2", "--steps-per-report", "1", "--device", "cpu"],
        stderr=subprocess.PIPE, text=True)
    kills = {7: 1, 22: 0}  # after which step's report a worker of this rank dies
    for line in process.stderr:
        found = re.match(r"step +(\d+) of", line)
        if found and (rank := kills.pop(int(found[1]), None)) is not None:
            os.kill(workers_of(process.pid)[rank], signal.SIGKILL)
    assert process.wait(TIMEOUT_S) == 0 and not kills
    whole, killed = ((tmp_path / name / "adapters.safetensors").read_bytes() for name in ("whole", "killed"))
    assert whole == killed
