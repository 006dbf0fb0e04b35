"""tandem train whose losses or gradients are no longer finite: what was finite stays, and the user is told."""
import os
import signal
import subprocess

import pytest

from conftest import DEMO_MODEL, PROGRAM, TIMEOUT_S, run_tandem
from training import QUESTIONS, raw_tensors, train_some, workers_of, write_data

WILD = ["--learning-rate", 1e30]


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data", QUESTIONS)


def diverges(data, out, *more):
    done = run_tandem("train", DEMO_MODEL, "--data", data, "--out", out, "--num-layers", 2, "--device", "cpu", *more)
    assert done.returncode == 2 and b"the run has diverged; " in done.stderr, (done.returncode, done.stderr.decode())
    assert b"json.exception" not in done.stderr
    return done.stderr.decode()


def checkpoints(out):
    return sorted(int(file.stem[-6:]) for file in out.glob("checkpoint*"))


# Step 4 is taken, and saved; from it there is no other.
@pytest.mark.parametrize("how", [[], ["--dtype", "bfloat16"], ["--ranks", 2, "--parallel", "pp"]])
@pytest.mark.parametrize("validates", [True, False])
def test_what_was_finite_stays(validates, how, data, tmp_path):
    out = tmp_path / "out"
    if validates:
        write_data(data, QUESTIONS[:4], "valid.jsonl")
    assert train_some(data, out, "--iters", 3, *how).returncode == 0
    before = raw_tensors(out)
    told = diverges(data, out, "--iters", 12, "--resume", "--save-every", 1, *how, *WILD)
    assert "are those of step 3: go on by --resume" in told and checkpoints(out) == [3] and raw_tensors(out) == before
    assert train_some(data, out, "--iters", 6, "--resume", *how).returncode == 0
    assert train_some(data, tmp_path / "whole", "--iters", 6, *how).returncode == 0
    assert raw_tensors(out) == raw_tensors(tmp_path / "whole")


@pytest.mark.parametrize("more", [[], ["--save-every", 1], ["--save-every", 1, "--dtype", "bfloat16"]])
def test_a_run_that_diverges_at_once_leaves_nothing(more, data, tmp_path):
    out = tmp_path / "out"
    told = diverges(data, out, "--iters", 7, *more, *WILD)
    assert "nothing was saved: begin again" in told and not list(out.glob("*.safetensors"))
    assert train_some(data, out, "--iters", 2).returncode == 0


def test_a_run_of_few_steps_that_float16_leaves_out(data, tmp_path):
    told = diverges(data, tmp_path / "out", "--iters", 2, "--dtype", "float16")
    assert "loss is scaled by half" in told and "step 2: no gradient was finite" in told


# The group that comes after a kill knows of no step that was taken from its checkpoint.
def test_the_checkpoint_that_a_new_group_began_with_stays(data, tmp_path):
    out = tmp_path / "out"
    assert train_some(data, out, "--iters", 2).returncode == 0
    run = subprocess.Popen([PROGRAM, "train", DEMO_MODEL, "--data", data, "--out", out, "--num-layers", "2", "--iters", "10000",
                            "--device", "cpu", "--resume", "--steps-per-report", "1", "--save-every", "1"], stderr=subprocess.PIPE, text=True)
    for line in run.stderr:
        if line.startswith("step ") and int(line.split()[1]) > 6:
            break
    (worker,) = workers_of(run.pid)
    os.kill(worker, signal.SIGKILL)
    for line in run.stderr:
        if "going on after step" in line:
            break
    run.send_signal(signal.SIGINT)
    run.stderr.read()
    assert run.wait(TIMEOUT_S) == 130
    (last,) = checkpoints(out)
    told = diverges(data, out, "--iters", last + 8, "--resume", *WILD)
    assert f"are those of step {last}" in told and checkpoints(out) == [last]


def test_a_first_adapter_that_is_not_finite_is_no_divergence(data, tmp_path):
    assert train_some(data, tmp_path / "first", "--iters", 1).returncode == 0
    file = tmp_path / "first/adapters.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\xc0\x7f")
    done = train_some(data, tmp_path / "out", "--iters", 1, "--resume-adapter-file", tmp_path / "first")
    assert done.returncode == 2 and b"that are not finite" in done.stderr and b"diverged" not in done.stderr
