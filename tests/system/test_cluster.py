"""Workers: their deaths, the conductor's death, plans, and the remote form through a fake ssh."""
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import time
import urllib.request

import pytest
from conftest import (DEMO_MODEL, LONG_SEED, PROGRAM, ROOT, children, is_alive, on_terminal, release_only, run_tandem,
                      wait_until)

LONG_STORY = ["run", str(DEMO_MODEL), "Tell me a story about Tom and a shell.", "--temperature", "5", "--seed",
              str(LONG_SEED)]


def start_long_answer(ranks, plan="tp"):
    """A run in the middle of its answer, with the pids of its workers in order of rank."""
    process = subprocess.Popen([PROGRAM, *LONG_STORY, "--ranks", str(ranks), "--plan", plan], stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.read(1)
    return process, sorted(children(process.pid))


@pytest.mark.parametrize("ranks, plan, rank", [(2, "tp", 0), (2, "tp", 1), (3, "pp", 0), (3, "pp", 1), (3, "pp", 2)])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_worker_is_named_at_once(ranks, plan, rank, how):
    process, workers = start_long_answer(ranks, plan)
    os.kill(workers[rank], how)
    started = time.monotonic()
    _, err = process.communicate(timeout=20)
    assert time.monotonic() - started < 3
    assert process.returncode == 1
    # A sanitizer takes SIGSEGV for itself and exits.
    assert f"rank {rank} (on local)" in err.decode()
    assert f"signal {how.value}" in err.decode() or how == signal.SIGSEGV
    assert not any(is_alive(pid) for pid in workers)


@pytest.mark.parametrize("rank", [pytest.param(0, marks=release_only), 1])
def test_a_worker_that_stands_still_is_named_in_time(rank):
    process, workers = start_long_answer(2)
    os.kill(workers[rank], signal.SIGSTOP)
    started = time.monotonic()
    _, err = process.communicate(timeout=40)
    assert time.monotonic() - started < 20  # a step's deadline is 10 s
    assert process.returncode == 1
    assert f"rank {rank} sent nothing" in err.decode() or f"rank {rank} (on local)" in err.decode(), err.decode()
    assert wait_until(lambda: not any(is_alive(pid) for pid in workers), 3)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_workers_die_with_the_conductor(how):
    process, workers = start_long_answer(2)
    assert len(workers) == 2
    process.send_signal(how)
    process.wait(10)
    assert wait_until(lambda: not any(is_alive(pid) for pid in workers), 3)


@pytest.mark.parametrize("plan", ["tp", "pp"])
def test_ctrl_c_stops_the_answer(plan):
    process, workers = start_long_answer(2, plan)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "stopped by Ctrl-C" in err.decode()


def test_a_server_whose_worker_is_killed_says_so_and_ends(start_server):
    server = start_server(DEMO_MODEL, "--ranks", "2")
    os.kill(max(children(server.process.pid)), signal.SIGKILL)
    assert server.process.wait(10) == 1
    assert wait_until(lambda: any("killed by signal 9" in line for line in server.log))


def write_plan(folder, **changes):
    plan = {"stages": [{"layers": [0, 6], "ranks": [{"host": "local", "share": 3}, {"host": "local", "share": 1}]}]}
    plan.update(changes)
    file = folder / "plan.json"
    file.write_text(json.dumps(plan))
    return file


def test_an_unequal_plan_is_followed(tmp_path):
    done = run_tandem("run", DEMO_MODEL, "What is 29 + 31?", "--plan", write_plan(tmp_path), "--json")
    answer = json.loads(done.stdout)
    assert answer["text"] == "29 + 31 = 60."
    big, small = (rank["weight_bytes"] for rank in answer["ranks"])
    assert 2.7 < big / small < 3.3


def fake_ssh(folder):
    """An ssh that writes its arguments to a file and runs the command here, as sshd's shell would."""
    script = folder / "ssh"
    script.write_text(f"""#!/bin/sh
printf '%s\\n' "$*" >> {folder}/calls
while [ "$1" != -- ]; do shift; done
shift 2
exec sh -c "$*"
""")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_remote_workers_through_ssh(tmp_path):
    environment = fake_ssh(tmp_path)
    done = run_tandem("run", DEMO_MODEL, "What is 29 + 31?", "--hosts", "local,studio2", "--remote-program", PROGRAM,
                      env=environment)
    assert done.stdout == b"29 + 31 = 60.\n", done.stderr
    call = (tmp_path / "calls").read_text()
    assert "BatchMode=yes" in call and f"-- studio2 {PROGRAM} worker" in call


def ssh_without_the_model(folder, model):
    """A fake ssh to machines on which `model` is an empty folder: a mount namespace of its own."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0:
        pytest.skip("no right to make a mount namespace here")
    environment = fake_ssh(folder)
    script = folder / "ssh"
    script.write_text(script.read_text().replace(
        'exec sh -c "$*"', f'exec unshare -m sh -c "mount -t tmpfs none {model} && exec $*"'))
    return environment


HERE_ALONE = [("local,far", "demo"), ("far,local", "demo"), ("local,far1,far2", "demo"), ("local,local,far", "demo"),
              ("local,far", "llama-tied"), ("local,far", "qwen3-moe-sparse-step"), ("far,local", "deepseek-v3-mtp"),
              ("local,far", "deepseek-v3-fp8"), ("far,local", "tiny-llama-mlx-4bit")]


@pytest.mark.parametrize("hosts, name", HERE_ALONE)
def test_weights_travel_to_machines_that_lack_them(hosts, name, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(DEMO_MODEL if name == "demo" else ROOT / "tests/golden" / name, model)
    ids = ["--ids", "5,6,7,8,9,10,11,12"]
    ranks = ["--ranks", str(hosts.count(",") + 1)]
    here = run_tandem("logits", model, *ids, *ranks)
    assert here.returncode == 0, here.stderr.decode()
    (tmp_path / "bin").mkdir()
    environment = ssh_without_the_model(tmp_path / "bin", model)
    split = run_tandem("logits", model, *ids, "--hosts", hosts, "--remote-program", PROGRAM, env=environment)
    assert split.returncode == 0, split.stderr.decode()
    assert split.stdout == here.stdout  # the same slices: the same bits


def test_weights_travel_to_pipeline_stages(tmp_path):
    model = tmp_path / "model"
    shutil.copytree(DEMO_MODEL, model)
    plan = {"stages": [{"layers": [0, 3], "ranks": [{"host": "local"}, {"host": "far1"}]},
                       {"layers": [3, 6], "ranks": [{"host": "far2"}, {"host": "far3"}]}]}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    (tmp_path / "bin").mkdir()
    done = run_tandem("run", model, "What is 29 + 31?", "--plan", tmp_path / "plan.json", "--remote-program", PROGRAM,
                      env=ssh_without_the_model(tmp_path / "bin", model))
    assert done.stdout == b"29 + 31 = 60.\n", done.stderr.decode()


def test_shards_are_kept_where_asked(tmp_path):
    model, shards = tmp_path / "model", tmp_path / "cache/tandem/shards"
    shutil.copytree(DEMO_MODEL, model)
    (tmp_path / "bin").mkdir()
    environment = ssh_without_the_model(tmp_path / "bin", model) | {"XDG_CACHE_HOME": str(tmp_path / "cache")}

    def received(*flags):
        """The bytes of weights that each rank got from another one, and what was said on stderr."""
        done = run_tandem("run", model, "What is 29 + 31?", "--hosts", "local,far", "--remote-program", PROGRAM, "--json",
                          *flags, env=environment)
        answer = json.loads(done.stdout)
        assert answer["text"] == "29 + 31 = 60.", done.stderr.decode()
        assert answer["ranks"][1]["weight_bytes"] > 4_000_000
        return [rank["received_bytes"] for rank in answer["ranks"]], done.stderr.decode()

    all_of_it = [0, received()[0][1]]
    assert all_of_it[1] > 4_000_000 and not shards.exists()
    assert received("--cache-shards")[0] == all_of_it
    assert received("--cache-shards")[0] == [0, 0]
    assert received()[0] == all_of_it
    [file] = shards.glob("*/*")
    with open(file, "r+b") as kept:
        kept.write(b"damage")
    bytes_received, said = received("--cache-shards")
    assert bytes_received == all_of_it and f"{file} is damaged" in said
    assert received("--cache-shards")[0] == all_of_it  # which keeps them again
    assert received("--cache-shards")[0] == [0, 0]


def test_a_full_disk_keeps_no_shards_and_stops_nothing(tmp_path):
    model, cache = tmp_path / "model", tmp_path / "cache"
    shutil.copytree(DEMO_MODEL, model)
    cache.mkdir()
    (tmp_path / "bin").mkdir()
    environment = ssh_without_the_model(tmp_path / "bin", model) | {"XDG_CACHE_HOME": str(cache)}
    script = tmp_path / "bin/ssh"
    script.write_text(script.read_text().replace("&& exec", f"&& mount -t tmpfs -o size=1m none {cache} && exec"))
    done = run_tandem("run", model, "What is 29 + 31?", "--hosts", "local,far", "--remote-program", PROGRAM,
                      "--cache-shards", env=environment)
    assert done.stdout == b"29 + 31 = 60.\n", done.stderr.decode()
    assert "rank 1" in done.stderr.decode() and "are not kept for the next start" in done.stderr.decode()


@release_only
def test_a_load_that_takes_a_while_is_shown_by_rank():
    shape = ROOT / "bench/shapes/1b.json"
    shown, code = on_terminal(["bench", "--shape", shape, "--bits", "bf16", "--prompt", "1", "--generate", "0", "--ranks",
                               "2", "--repeat", "1"])
    assert code == 0, shown
    for rank in (0, 1):
        assert re.search(rf"\d+ %  .* of .*/s .* left  rank {rank} \(local\)", shown), shown
    shown, code = on_terminal(["run", DEMO_MODEL, "Hi", "--ranks", "2", "--max-tokens", "1"])
    assert code == 0 and "rank 0" not in shown, shown


def test_a_model_that_no_rank_has_is_said(tmp_path):
    model = tmp_path / "model"
    shutil.copytree(DEMO_MODEL, model)
    (tmp_path / "bin").mkdir()
    done = run_tandem("run", model, "Hi", "--hosts", "far1,far2", "--remote-program", PROGRAM,
                      env=ssh_without_the_model(tmp_path / "bin", model))
    assert done.returncode == 2 and done.stdout == b""
    assert "no rank's machine has the model's files" in done.stderr.decode() and str(model) in done.stderr.decode()


def test_a_data_plane_that_brings_no_weights_says_so(tmp_path):
    model = tmp_path / "model"
    shutil.copytree(DEMO_MODEL, model)
    (tmp_path / "bin").mkdir()
    done = run_tandem("run", model, "Hi", "--hosts", "local,far", "--backend", "ring", "--remote-program", PROGRAM,
                      env=ssh_without_the_model(tmp_path / "bin", model))
    assert done.returncode == 2 and done.stdout == b""
    assert "rank 1's machine lacks the model's files" in done.stderr.decode()


def test_a_damaged_file_is_named_to_who_lacks_it(tmp_path):
    model = tmp_path / "model"
    shutil.copytree(DEMO_MODEL, model)
    weights = model / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    (tmp_path / "bin").mkdir()
    done = run_tandem("run", model, "Hi", "--hosts", "local,far", "--remote-program", PROGRAM,
                      env=ssh_without_the_model(tmp_path / "bin", model))
    assert done.returncode == 2 and done.stdout == b""
    assert str(weights) in done.stderr.decode()


def test_a_remote_that_cannot_be_started_is_named(tmp_path):
    done = run_tandem("run", DEMO_MODEL, "Hi", "--hosts", "local,studio2", "--remote-program", "/no/such/tandem",
                      env=fake_ssh(tmp_path))
    assert done.returncode == 1
    assert "rank 1 (on studio2)" in done.stderr.decode()


def test_ssh_that_is_missing_is_named(tmp_path):
    done = run_tandem("run", DEMO_MODEL, "Hi", "--hosts", "studio2", env=os.environ | {"PATH": str(tmp_path)})
    assert done.returncode == 1
    assert "cannot start ssh" in done.stderr.decode()


def test_health_shows_every_rank(server):
    health = json.load(urllib.request.urlopen(server + "/health"))
    assert health["status"] == "ok" and len(health["ranks"]) == 2


@pytest.mark.parametrize("flags", [("--wire", "bfloat16"), ("--backend", "ring"), ("--backend", "tcp", "--threads", "2")],
                         ids=" ".join)
def test_every_data_plane_answers(flags):
    done = run_tandem("run", DEMO_MODEL, "What is 29 + 31?", "--ranks", "2", *flags)
    assert done.stdout == b"29 + 31 = 60.\n", done.stderr.decode()


@pytest.mark.parametrize("backend, reason", [("mpi", "mpi not in {auto,tcp,ring"), ("jaccl", "--backend jaccl"), ("nccl", "--backend nccl")])
def test_a_data_plane_that_cannot_be_says_why(backend, reason):
    done = run_tandem("run", DEMO_MODEL, "Hi", "--ranks", "2", "--backend", backend)
    assert done.returncode == 2
    assert reason in done.stderr.decode() and done.stdout == b""
