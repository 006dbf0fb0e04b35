"""The chat on a real terminal (a pseudo-terminal)."""
import os
import pty
import re
import select
import signal
import subprocess
import termios
import time

import pytest
from conftest import DEMO_MODEL, LONG_SEED, PROGRAM, children, wait_until


class Terminal:
    """A chat behind a pseudo-terminal."""

    def __init__(self, home, *args):
        self.master, slave = pty.openpty()
        environment = os.environ | {"HOME": str(home), "XDG_STATE_HOME": str(home / "state"), "TERM": "xterm",
                                    "LANG": "C.UTF-8"}
        self.process = subprocess.Popen([PROGRAM, *map(str, args)], stdin=slave, stdout=slave, stderr=slave,
                                        env=environment, start_new_session=True,
                                        preexec_fn=lambda: __import__("fcntl").ioctl(0, 0x540E, 0))  # TIOCSCTTY
        os.close(slave)
        self.screen = ""

    def type(self, text):
        os.write(self.master, text.encode())

    def wait_for(self, pattern, seconds=60):
        """Reads until `pattern` appears in what came since the last wait."""
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self.screen)):
            assert time.monotonic() < deadline, f"no {pattern!r} in {self.screen!r}"
            if select.select([self.master], [], [], 0.1)[0]:
                self.screen += os.read(self.master, 65536).decode(errors="replace")
        self.screen = self.screen[found.end():]
        return found

    def prompt(self, before=""):
        """Waits for the prompt, and until its line can be edited."""
        self.wait_for(before + r"[^>]*> ")
        assert wait_until(lambda: not termios.tcgetattr(self.master)[3] & termios.ICANON)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        os.close(self.master)


@pytest.fixture
def chat(tmp_path):
    terminals = []

    def start(*args):
        terminals.append(Terminal(tmp_path, *args))
        return terminals[-1]

    yield start
    for terminal in terminals:
        terminal.close()


def test_answers_in_turn_and_leaves_on_ctrl_d(chat):
    terminal = chat("run", DEMO_MODEL, "--ranks", 2)
    terminal.prompt()
    terminal.type("What is 29 + 31?\r")
    terminal.wait_for(r"29 \+ 31 = 60\.")
    terminal.prompt("tokens/s")
    terminal.type("德国的首都是哪里?\r")
    terminal.wait_for("柏林")
    terminal.prompt("tokens/s")
    terminal.type("\x04")
    assert terminal.process.wait(10) == 0


def test_ctrl_c_stops_the_answer_and_not_the_program(chat):
    # This seed's noise goes on for hundreds of tokens.
    terminal = chat("run", DEMO_MODEL, "--temperature", 5, "--seed", LONG_SEED, "--ranks", 2)
    terminal.prompt()
    for _ in range(8):
        terminal.type("Tell me a story about Tom and a shell.\r")
        terminal.wait_for(r"shell\.\r\n[\s\S]{100}")
        terminal.type("\x03")
        if terminal.wait_for(r"prompt \d+ tokens, \d+ tokens/s( · stopped by Ctrl-C)?[^>]*> ")[1]:
            break
        # A busy machine showed the words when the answer was over, two seconds late.
        terminal.type("/clear\r")
        terminal.prompt()
    else:
        pytest.fail("no answer was stopped")
    terminal.type("half a line\x03/exit\r")
    assert terminal.process.wait(10) == 0


def test_ctrl_c_before_the_first_word_counts(chat):
    terminal = chat("run", DEMO_MODEL, "--temperature", 5, "--seed", LONG_SEED, "--ranks", 2)
    terminal.prompt()
    workers = children(terminal.process.pid)
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    terminal.type("Tell me a story about Tom and a shell.\r")
    assert wait_until(lambda: termios.tcgetattr(terminal.master)[3] & termios.ISIG)
    terminal.type("\x03")
    terminal.wait_for(r"\^C")
    time.sleep(0.5)  # the program asks every 50 ms
    for worker in workers:
        os.kill(worker, signal.SIGCONT)
    terminal.prompt("stopped by Ctrl-C")


def test_history_is_kept(chat):
    first = chat("run", DEMO_MODEL)
    first.prompt()
    first.type("What is 29 + 31?\r")
    first.wait_for("= 60")
    first.prompt("tokens/s")
    first.type("/exit\r")
    assert first.process.wait(10) == 0
    second = chat("run", DEMO_MODEL)
    second.prompt()
    second.type("\x1b[A\x1b[A\r")  # up, up: over /exit to the question
    second.wait_for("= 60")


def test_demo_goes_on_as_a_chat(chat):
    terminal = chat("demo")
    terminal.wait_for("Type a message")
    terminal.type("/help\r")
    terminal.wait_for("/clear")
    terminal.type("/exit\r")
    assert terminal.process.wait(10) == 0
