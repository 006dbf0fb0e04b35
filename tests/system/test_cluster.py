"""Workers: their deaths, the conductor's death, plans, and the remote form through a fake ssh."""
import json
import os
import signal
import stat
import subprocess
import time
import urllib.request

import pytest
from conftest import DEMO_MODEL, LONG_SEED, PROGRAM, children, is_alive, run_tandem, wait_until

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


@pytest.mark.parametrize("backend, reason", [("mpi", "mpirun"), ("jaccl", "--backend jaccl"), ("nccl", "--backend nccl")])
def test_a_data_plane_that_cannot_be_says_why(backend, reason):
    done = run_tandem("run", DEMO_MODEL, "Hi", "--ranks", "2", "--backend", backend)
    assert done.returncode == 2
    assert reason in done.stderr.decode() and done.stdout == b""
