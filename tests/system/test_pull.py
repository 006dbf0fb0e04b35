"""tandem pull against a hub of the tests' own (hub_server.py)."""
import copy
import json
import os
import re
import signal
import subprocess
import time

import pytest
from conftest import DEMO_MODEL, on_terminal, run_tandem, wait_until
from hub_server import Hub, Trouble
from pulling import (BIG, COMMIT, DATA, FILES, NAME, NEEDED, assert_nothing_looks_whole, assert_whole, blob_of,
                     environment, home, hub, model_folder, partial_of, pull, size_of, start_pull)


def test_layout_result_and_second_pull(hub, home):
    done = pull(hub, home, "--json")
    assert done.returncode == 0, done.stderr.decode()
    assert_whole(home)
    result = json.loads(done.stdout)
    assert result["folder"] == str(model_folder(home) / "snapshots" / COMMIT)
    size = sum(len(FILES[name]) for name in NEEDED)
    assert (result["commit"], result["files"], result["bytes"], result["fetched_bytes"]) == (COMMIT, 5, size, size)
    # One line a file, aligned; no escape sequence where stderr is no terminal.
    lines = done.stderr.decode().splitlines()
    assert b"\x1b" not in done.stderr and b"\r" not in done.stderr
    rows = [line for line in lines if line.startswith("  ")]
    assert len(rows) == 5 and len({len(row) for row in rows}) == 1, lines
    before = len(hub.requests)
    done = pull(hub, home)
    assert done.returncode == 0 and done.stdout.decode() == result["folder"] + "\n"
    assert len(hub.requests) == before + 1 and "all here already" in done.stderr.decode()


def test_include(hub, home):
    done = pull(hub, home, "--include", "*.json", "--include", "sub/*")
    assert done.returncode == 0, done.stderr.decode()
    names = {"config.json", "tokenizer.json", "sub/extra.json", "sub/a b+%.txt"}
    assert_whole(home, names)
    # What a later pull adds comes into the same snapshot.
    assert pull(hub, home).returncode == 0
    assert_whole(home, names | NEEDED)


def test_revision(hub, home):
    hub.add(NAME, {**FILES, "config.json": b'{"a": 2}'}, commit="2" * 40, revision="refs/pr/1")
    for revision, commit in (("refs/pr/1", "2" * 40), ("1" * 40, "1" * 40)):
        done = pull(hub, home, name=f"{NAME}@{revision}")
        assert done.returncode == 0 and done.stdout.decode().strip().endswith(commit), done.stderr.decode()
    assert [str(file.relative_to(model_folder(home))) for file in model_folder(home).rglob("refs/**/*")
            if file.is_file()] == ["refs/refs/pr/1"]
    assert len(hub.transfers(BIG)) == 1  # the two share it


def test_token_stays_with_the_hub(hub, home):
    hub.gated[NAME] = "hf_secret"
    done = pull(hub, home, HF_TOKEN="hf_secret\n")
    assert done.returncode == 0, done.stderr.decode()
    assert {one.token for one in hub.requests if one.host == "hub"} == {"Bearer hf_secret"}
    assert {one.token for one in hub.requests if one.host == "store"} == {""}
    assert b"hf_secret" not in done.stdout + done.stderr


TROUBLES = {
    "cut twice": Trouble(cuts=2),
    "no ranges": Trouble(cuts=1, ignores_range=True),
    "429": Trouble(statuses=[(429, {"Retry-After": "1"})]),
    "500": Trouble(statuses=[(500, {}), (503, {})]),
    "416": Trouble(statuses=[(416, {})]),
    "wrong range": Trouble(cuts=1, lies_about_range=1),
}


@pytest.mark.parametrize("name", TROUBLES)
def test_troubles_that_pass(hub, home, name):
    hub.troubles[BIG] = copy.deepcopy(TROUBLES[name])
    if name == "416":
        partial = partial_of(home)
        partial.parent.mkdir(parents=True)
        partial.write_bytes(DATA[:-1])
    start = time.monotonic()
    done = pull(hub, home)
    took = time.monotonic() - start
    message = done.stderr.decode()
    assert done.returncode == 0, message
    assert_whole(home)
    sent = sum(one.sent for one in hub.transfers(BIG))
    if name == "cut twice":
        assert sent == len(DATA) and [bool(one.range) for one in hub.transfers(BIG)] == [False, True, True]
    if name == "429":
        assert took >= 1 and "answered 429" in message
    if name == "500":
        assert "answered 500" in message and "answered 503" in message


def test_stale_partial_longer_than_the_file(hub, home):
    partial = partial_of(home)
    partial.parent.mkdir(parents=True)
    partial.write_bytes(DATA + b"more")
    assert pull(hub, home).returncode == 0
    assert_whole(home)


def test_spoilt_file_is_deleted(hub, home):
    hub.troubles[BIG] = Trouble(spoils=1)
    done = pull(hub, home)
    message = done.stderr.decode()
    assert done.returncode == 1 and done.stdout == b""
    assert "checksum" in message and str(blob_of(home, DATA)) in message
    assert not partial_of(home).exists() and not blob_of(home, DATA).exists()
    assert_nothing_looks_whole(home)
    assert pull(hub, home).returncode == 0
    assert_whole(home)


FAILURES = {
    "no such model": (2, {"name": "acme/none"}, ["no such model or revision", "acme/none", "main"]),
    "no such revision": (2, {"name": NAME + "@v9"}, ["no such model or revision", "v9"]),
    "gated": (2, {"name": "acme/gated"}, ["gated", "HF_TOKEN", "licence", "/acme/gated"]),
    "gated, wrong token": (2, {"name": "acme/gated", "HF_TOKEN": "hf_x"}, ["gated", "licence", "/acme/gated"]),
    "private": (2, {"name": "acme/private"}, ["no such model, or it is private or gated", "HF_TOKEN"]),
    "forbidden": (2, {"name": "acme/forbidden", "HF_TOKEN": "hf_x"}, ["answered 403", "licence"]),
    "no name": (2, {"name": "tiny"}, ["tiny", "ORG/NAME"]),
    "dots": (2, {"name": "../../etc"}, ["../../etc", "ORG/NAME"]),
    "dots in the revision": (2, {"name": NAME + "@../../x"}, ["ORG/NAME"]),
    "nothing matches": (2, {"args": ["--include", "*.gguf"]}, ["*.gguf", "10 files"]),
    "endpoint": (2, {"hub": "ftp://x"}, ["HF_ENDPOINT", "ftp://x"]),
    "token": (2, {"HF_TOKEN": "a\nb"}, ["HF_TOKEN"]),
    "no host": (1, {"hub": "http://no-such-host.invalid"}, ["cannot resolve host no-such-host.invalid"]),
    "no hub there": (1, {"hub": "http://127.0.0.1:1"}, ["cannot connect to 127.0.0.1:1"]),
    "not a list": (1, {"name": "acme/page"}, ["no list of a model's files"]),
    "broken for good": (1, {"name": "acme/broken", "args": ["--retries", "1"]}, ["answered 500", "acme/broken"]),
    "asks to wait for hours": (1, {"name": "acme/busy"}, ["answered 429", "7200 s", "300 s"]),
    "redirect to a file": (1, {"name": "acme/file"}, ["acme/file"]),
    "redirects without end": (1, {"name": "acme/circle"}, ["acme/circle", "redirect"]),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failures(hub, home, name):
    code, call, words = FAILURES[name]
    hub.add("acme/gated", FILES)
    hub.gated["acme/gated"] = "hf_right"
    hub.answers = {"acme/private": (401, {"X-Error-Code": "RepoNotFound"}), "acme/forbidden": (403, {}),
                   "acme/page": (200, {}, b"<html>"), "acme/broken": (500, {}),
                   "acme/busy": (429, {"Retry-After": "7200"}), "acme/file": (302, {"Location": "file:///etc/passwd"}),
                   "acme/circle": (302, {"Location": hub.url + "/api/models/acme/circle/revision/main"})}
    call = dict(call)
    done = pull(call.pop("hub", hub), home, *call.pop("args", []), **call)
    message = done.stderr.decode()
    assert done.returncode == code, message
    assert done.stdout == b""
    for word in words:
        assert word in message
    assert "hf_x" not in message


@pytest.mark.parametrize("path", ["../x.safetensors", "/etc/x.safetensors", "a/../../x.safetensors", "a//b.json", "./a.json",
                                  "", "a\\..\\b.json", "a\nb.json", "x" * 300, BIG])
def test_path_outside_the_model(hub, home, path):
    hub.edit_listing = lambda listing: {**listing, "siblings": listing["siblings"] + [
        {"rfilename": path, "size": 5, "blobId": "0" * 40}]}
    done = pull(hub, home)
    assert done.returncode == 1 and ("no path within the model" in done.stderr.decode() or path == BIG)
    assert len(hub.requests) == 1 and not model_folder(home).exists()


@pytest.mark.parametrize("commit", ["../../x", "", "2" * 39, 7])
def test_commit_that_is_none(hub, home, commit):
    hub.edit_listing = lambda listing: {**listing, "sha": commit}
    assert pull(hub, home).returncode == 1 and not model_folder(home).exists()


def test_list_without_checksums(hub, home):
    hub.edit_listing = lambda listing: {"sha": listing["sha"], "siblings": [
        {"rfilename": one["rfilename"]} for one in listing["siblings"]]}
    done = pull(hub, home)
    assert done.returncode == 0, done.stderr.decode()
    assert_whole(home)


def test_more_bytes_than_listed(hub, home):
    hub.troubles[BIG] = Trouble(extra=b"x" * 100_000)
    done = pull(hub, home)
    assert done.returncode == 1 and "more than its 3000000 bytes" in done.stderr.decode()
    assert_nothing_looks_whole(home)


def test_killed_pull_goes_on(hub, home):
    hub.troubles[BIG] = Trouble(pause_s=0.05)
    process = start_pull(hub, home)
    assert wait_until(lambda: size_of(partial_of(home)) > 500_000)
    process.kill()
    process.wait()
    process.stdout.close(), process.stderr.close()
    assert_nothing_looks_whole(home)
    assert run_tandem("run", NAME, "Hi", env=environment(hub, home)).returncode == 2
    there = size_of(partial_of(home))
    hub.troubles.clear()
    hub.requests.clear()
    done = pull(hub, home, "--json")
    assert done.returncode == 0, done.stderr.decode()
    assert_whole(home)
    (request,) = hub.transfers(BIG)
    assert request.range == f"bytes={there}-" and request.sent == len(DATA) - there
    assert not hub.transfers("config.json")
    assert json.loads(done.stdout)["fetched_bytes"] <= len(DATA) - there + 50_000


def test_interrupt(hub, home):
    hub.troubles[BIG] = Trouble(pause_s=0.05)
    process = start_pull(hub, home)
    assert wait_until(lambda: size_of(partial_of(home)) > 100_000)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=5)
    assert process.returncode == 130 and out == b"" and b"goes on from here" in err


def test_two_pulls_take_turns(hub, home):
    hub.troubles[BIG] = Trouble(pause_s=0.01)
    processes = [start_pull(hub, home) for _ in range(3)]
    errors = [process.communicate(timeout=20)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], errors
    assert_whole(home)
    assert sum(one.sent for one in hub.transfers(BIG)) == len(DATA)
    assert sum("another tandem pulls acme/tiny" in error for error in errors) == 2


def test_several_files_at_once(hub, home):
    files = {f"{i}.safetensors": DATA[i:200_000 + i] for i in range(12)}
    hub.add("acme/many", files)
    for path in files:
        hub.troubles[path] = Trouble(pause_s=0.1)  # four pieces: 0.4 s each
    start = time.monotonic()
    assert pull(hub, home, name="acme/many").returncode == 0
    assert time.monotonic() - start < 3  # one after the other: 4.8 s


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder],
                                           capture_output=True).returncode:
        pytest.skip("needs root and tmpfs")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_disk_without_room(hub, small_disk):
    (small_disk / "filler").write_bytes(bytes(3_000_000))
    done = pull(hub, small_disk)
    message = done.stderr.decode()
    assert done.returncode == 2
    needed = sum(len(FILES[name]) for name in NEEDED)
    assert f"{needed} bytes are needed" in message and str(model_folder(small_disk) / "blobs") in message
    assert not hub.transfers(BIG)


def test_disk_fills_up(hub, small_disk):
    hub.troubles[BIG] = Trouble(pause_s=0.05)
    process = start_pull(hub, small_disk)
    others = [blob_of(small_disk, FILES[name]) for name in NEEDED - {BIG}]
    assert wait_until(lambda: size_of(partial_of(small_disk)) > 200_000 and all(one.exists() for one in others))
    with pytest.raises(OSError):
        (small_disk / "filler").write_bytes(bytes(4_000_000))
    message = process.communicate(timeout=10)[1].decode()
    assert process.returncode == 2
    there = size_of(partial_of(small_disk))
    assert "disk is full" in message and str(partial_of(small_disk)) in message
    assert f"{len(DATA) - there} more bytes" in message
    (small_disk / "filler").unlink()
    assert pull(hub, small_disk).returncode == 0
    assert_whole(small_disk)


def test_cache_that_cannot_be_made(hub, tmp_path):
    (tmp_path / "file").write_text("")
    done = pull(hub, tmp_path / "file")
    assert done.returncode == 2 and str(tmp_path / "file") in done.stderr.decode()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    files = folder / "cert.pem", folder / "key.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
                    "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", files[1], "-out", files[0]],
                   check=True, capture_output=True)
    return files


def test_tls(home, certificate):
    hub = Hub(certificate)
    try:
        hub.add(NAME, FILES)
        done = pull(hub, home)
        assert done.returncode == 1 and "TLS with 127.0.0.1" in done.stderr.decode()
        assert "SSL_CERT_FILE" in done.stderr.decode()
        done = pull(hub, home, SSL_CERT_FILE=str(certificate[0]))
        assert done.returncode == 0, done.stderr.decode()
        assert_whole(home)
    finally:
        hub.stop()


def test_tls_does_not_lead_to_plain_http(hub, home, certificate):
    secure = Hub(certificate)
    try:
        secure.answers[NAME] = (302, {"Location": hub.url + f"/api/models/{NAME}/revision/main"})
        done = pull(secure, home, SSL_CERT_FILE=str(certificate[0]), HF_TOKEN="hf_secret")
        assert done.returncode == 1 and not hub.requests
    finally:
        secure.stop()


def test_pulled_model_runs(hub, home):
    hub.add("acme/demo", {file.name: file.read_bytes() for file in DEMO_MODEL.iterdir()})
    question = ["run", "acme/demo", "What is 27 + 15?", "--temperature", "0"]
    done = run_tandem(*question, env=environment(hub, home))
    assert done.returncode == 2 and "tandem pull acme/demo" in done.stderr.decode()
    assert pull(hub, home, name="acme/demo").returncode == 0
    done = run_tandem(*question, env=environment(hub, home))
    assert done.stdout.decode() == "27 + 15 = 42.\n", done.stderr.decode()
    done = run_tandem("run", "acme/demo@1111111", *question[2:], env=environment(hub, home))
    assert done.returncode == 0


def test_progress_on_a_terminal(hub, home):
    hub.troubles[BIG] = Trouble(pause_s=0.03)
    shown, code = on_terminal(["pull", NAME], environment(hub, home, NO_COLOR="1"))
    assert code == 0
    bars = re.findall(r"\r\x1b\[K([^\r\n]+)", shown)
    assert len(bars) > 5 and all(re.search(r"\d+ %  .* of .*/s .* left  \d of 5 files", one) for one in bars
                                 if " % " in one), shown
    assert not re.search(r"\x1b\[\d*m", shown)
