"""Runs the built program as a user would. TANDEM_PROGRAM names it (default: build/release/tandem)."""
import json
import os
import pty
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = os.environ.get("TANDEM_PROGRAM", str(ROOT / "build/release/tandem"))
DEMO_MODEL = ROOT / "assets/demo-model"
GOLDEN = json.loads((ROOT / "tests/golden/demo-model/golden.json").read_text())
TIMEOUT_S = 120
LONG_SEED = 9  # at temperature 5 the story about Tom and a shell goes on for 700 tokens


# What is measured, or tested at length, in the release build alone: scripts/test.sh leaves it out under sanitizers.
release_only = pytest.mark.release_only


def pytest_configure(config):
    config.addinivalue_line("markers", "release_only: not under sanitizers")


def run_tandem(*args, **kwargs):
    """One run to its end; stdin is empty unless `input` is given."""
    if "input" not in kwargs:
        kwargs["stdin"] = subprocess.DEVNULL
    return subprocess.run([PROGRAM, *map(str, args)], capture_output=True, timeout=TIMEOUT_S, **kwargs)


def on_terminal(command, env=None, answer=b""):
    """Runs a command with a terminal for stdin and stderr; what it showed, and its exit code."""
    master, slave = pty.openpty()
    process = subprocess.Popen([PROGRAM, *map(str, command)], env=env, stdin=slave, stderr=slave, stdout=subprocess.PIPE)
    os.close(slave)
    if answer:
        os.write(master, answer)
    shown = b""
    try:
        while piece := os.read(master, 4096):
            shown += piece
    except OSError:
        pass
    os.close(master)
    process.stdout.close()
    return shown.decode(), process.wait(10)


class Server:
    """`tandem serve …` (or any verb that prints "listening on URL")."""

    def __init__(self, *args, env=None):
        self.process = subprocess.Popen([PROGRAM, *map(str, args)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True, env=env)
        self.log = []
        self.url = None
        listening = threading.Event()

        def read():
            for line in self.process.stderr:
                self.log.append(line)
                if found := re.search(r"listening on (http://\S+)", line):
                    self.url = found[1]
                    listening.set()
            listening.set()

        threading.Thread(target=read, daemon=True).start()
        listening.wait(TIMEOUT_S)
        if not self.url:
            self.process.kill()
            raise RuntimeError("the server did not start: " + "".join(self.log))

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(20)


@pytest.fixture
def start_server():
    """start_server(MODEL, *options): a server with .url and .process."""
    servers = []

    def start(model=DEMO_MODEL, *options, env=None):
        servers.append(Server("serve", model, "--port", 0, *options, env=env))
        return servers[-1]

    yield start
    for one in servers:
        one.stop()


@pytest.fixture(scope="module")
def server():
    """The base URL of the demo model on two ranks."""
    one = Server("serve", DEMO_MODEL, "--port", 0, "--ranks", 2)
    yield one.url
    one.stop()


def children(pid):
    """Process ids of the children of `pid`."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(word) for word in found.split()]


def wait_until(holds, seconds=10):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.02)
    return False


def is_alive(pid):
    """Running, not a zombie."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


def right_of_hundred_additions(server):
    """How many of 100 sums of two numbers a server of the demo model gives, word for word."""
    from openai import OpenAI
    client = OpenAI(base_url=server.url + "/v1", api_key="none")
    right = 0
    for i in range(100):
        a, b = (i * 37 + 11) % 90 + 5, (i * 53 + 7) % 90 + 5
        answer = client.chat.completions.create(
            model="demo", temperature=0, messages=[{"role": "user", "content": f"What is {a} + {b}?"}])
        right += answer.choices[0].message.content == f"{a} + {b} = {a + b}."
    return right
