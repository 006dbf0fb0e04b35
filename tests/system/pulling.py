"""What the tests of pull, list and rm share: a hub of their own, a home folder, and what is to lie in it."""
import hashlib
import os
import random
import subprocess

import pytest
from conftest import PROGRAM, run_tandem
from hub_server import Hub, git_sha1

NAME = "acme/tiny"
COMMIT = "1" * 40
BIG = "model-00001-of-00002.safetensors"
DATA = random.Random(1).randbytes(3_000_000)
FILES = {"config.json": b'{"a": 1}', "tokenizer.json": b"t" * 3000, "chat_template.jinja": b"", BIG: DATA,
         "model-00002-of-00002.safetensors": DATA[:50_000], "README.md": b"# Tiny", "pytorch_model.bin": b"b" * 20_000,
         "consolidated.safetensors": DATA[:20_000], "sub/extra.json": b"{}", "sub/a b+%.txt": b"odd name"}
NEEDED = {"config.json", "tokenizer.json", "chat_template.jinja", BIG, "model-00002-of-00002.safetensors"}


@pytest.fixture
def hub():
    one = Hub()
    one.add(NAME, FILES)
    yield one
    one.stop()


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def environment(hub, home, **more):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")
            and not name.lower().endswith("_proxy")}
    return {**kept, "HF_HOME": str(home), "HF_ENDPOINT": hub if isinstance(hub, str) else hub.url, **more}


def pull(hub, home, *args, name=NAME, **more):
    return run_tandem("pull", name, *args, env=environment(hub, home, **more))


def start_pull(hub, home, *args, **more):
    return subprocess.Popen([PROGRAM, "pull", NAME, *args], env=environment(hub, home, **more),
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def model_folder(home, name=NAME):
    return home / "hub" / ("models--" + name.replace("/", "--"))


def blob_of(home, data):
    return model_folder(home) / "blobs" / (hashlib.sha256(data).hexdigest() if len(data) >= 10_000 else git_sha1(data))


def partial_of(home, data=DATA):
    blob = blob_of(home, data)
    return blob.with_name(blob.name + ".incomplete")


def size_of(file):
    return file.stat().st_size if file.exists() else 0


def files_of(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def assert_nothing_looks_whole(home):
    folder = model_folder(home)
    assert not (folder / "refs").exists()
    assert not list((folder / "snapshots").glob("*"))


def assert_whole(home, names=NEEDED, commit=COMMIT):
    folder = model_folder(home)
    snapshot = folder / "snapshots" / commit
    assert files_of(snapshot) == {name: FILES[name] for name in names}
    for name in names:
        assert (snapshot / name).is_symlink() and not os.readlink(snapshot / name).startswith("/")
        assert (snapshot / name).resolve() == blob_of(home, FILES[name]).resolve()
    assert (folder / "refs/main").read_text() == commit
    assert not list(folder.rglob("*.incomplete")) and not list(folder.glob("*.part"))
