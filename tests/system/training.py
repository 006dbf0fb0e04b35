"""What the tests of training and of adapters share: splits, texts, and runs of tandem train."""
import json
import struct
import subprocess
from pathlib import Path

from conftest import DEMO_MODEL, PROGRAM, ROOT, TIMEOUT_S, run_tandem

SPLITS = {"1 rank": ["--ranks", 1], "recomputed": ["--ranks", 1, "--grad-checkpoint"],
          "tp 2": ["--ranks", 2], "dp 2": ["--ranks", 2, "--parallel", "dp"],
          "dp 3": ["--ranks", 3, "--parallel", "dp"], "sdp 2": ["--ranks", 2, "--parallel", "sdp"],
          "sdp 3": ["--ranks", 3, "--parallel", "sdp", "--grad-checkpoint"], "pp 2": ["--ranks", 2, "--parallel", "pp"],
          "tp 2 twice": ["--ranks", 4, "--replicas", 2],
          "pp 2 twice": ["--ranks", 4, "--replicas", 2, "--parallel", "pp"]}
EXPERTS = ",".join(f"mlp.switch_mlp.{name}_proj" for name in ("gate", "up", "down"))
SGD = ["--optimizer", "sgd", "--beta1", 0, "--weight-decay", 0, "--learning-rate"]
LORA, DORA, OF_EXPERTS = ["--method", "lora"], ["--method", "dora"], ["--lora-keys", EXPERTS + ",self_attn.o_proj"]


def folder_of(name):
    return DEMO_MODEL if name == "demo-model" else ROOT / "tests/golden" / name


def write_data(folder, lines, name="train.jsonl"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def perplexity(model, ids, *more):
    done = run_tandem("perplexity", model, "--ids-file", ids, "--device", "cpu", *more)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)["mean_nll"]


QUESTIONS = [{"messages": [{"role": "user", "content": f"What is {a} + {b}?"},
                           {"role": "assistant", "content": f"It is {a + b}, sir."}]} for a in range(11, 19) for b in (5, 7)]
TEXTS = [{"ids": [5 + (start + i * i) % 97 for i in range(30)]} for start in range(6)]


def raw_tensors(folder):
    """The bytes of every tensor in a folder's files."""
    found = {}
    for file in folder.glob("*.safetensors"):
        if file.name.startswith("checkpoint"):
            continue
        raw = file.read_bytes()
        size = struct.unpack_from("<Q", raw)[0]
        for name, info in json.loads(raw[8:8 + size]).items():
            if name != "__metadata__":
                begin, end = info["data_offsets"]
                found[name] = raw[8 + size + begin:8 + size + end]
    return found


def write_ids(folder):
    file = folder / "ids.txt"
    file.write_text("5 6 7 8")
    return file


def curve_of(out, name="train_loss"):
    """The values of that name that a run reported, in order."""
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [line[name] for line in lines if name in line]


def train_some(data, out, *more, **kwargs):
    return run_tandem("train", DEMO_MODEL, "--data", data, "--out", out, "--learning-rate", 1e-3, "--num-layers", 2,
                      "--save-every", 4, "--device", "cpu", *more, **kwargs)


def workers_of(pid):
    """The workers' ids, in the order in which they were started."""
    return sorted(int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def begun(data, out, *more):
    """tandem train without an end in sight, after its first line on a step."""
    run = subprocess.Popen([PROGRAM, "train", DEMO_MODEL, "--data", data, "--out", out, "--iters", "100000", "--steps-per-report", "1",
                            "--device", "cpu", *more], stderr=subprocess.PIPE, text=True)
    for line in run.stderr:
        if line.startswith("step "):
            return run
    raise AssertionError(run.wait(TIMEOUT_S))


def losses(data, out, *more):
    done = train_some(data, out, "--steps-per-report", 1, "--json", *more)
    assert done.returncode == 0, done.stderr.decode()
    return curve_of(out), json.loads(done.stdout)
