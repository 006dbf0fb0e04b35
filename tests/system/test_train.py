"""tandem train: gradients on every split against PyTorch's, optimizers, what a run leaves behind, and what goes wrong."""
import json
import math
import struct

import pytest
from conftest import DEMO_MODEL, ROOT, release_only, run_tandem
from safetensors_file import read_tensors
from training import QUESTIONS, SGD, SPLITS, TEXTS, curve_of, folder_of, losses, perplexity, train_some, write_data, write_ids

GRADIENTS = json.loads((ROOT / "tests/golden/gradients.json").read_text())
RATE = 1000  # of one step of plain descent, whose change is the gradient times this


@pytest.mark.parametrize("split", [pytest.param(split, marks=[] if split.endswith("2") else release_only) for split in SPLITS])
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_are_pytorchs(name, split, tmp_path):
    golden = GRADIENTS[name]
    data = write_data(tmp_path / "data", [{"ids": ids} for ids in golden["texts"]])
    done = run_tandem("train", folder_of(name), "--data", data, "--out", tmp_path / "out", "--method", "full", "--iters", 1,
                      "--batch-size", 3, "--save-dtype", "float32", "--json", "--device", "cpu", *SGD, RATE, *SPLITS[split])
    if b"without a copy" in done.stderr:
        pytest.skip("key/value heads that do not divide")
    assert done.returncode == 0, done.stderr.decode()
    result = json.loads(done.stdout)
    assert math.isclose(result["train_loss"], golden["loss"], rel_tol=1e-5)
    before, after = read_tensors(folder_of(name)), read_tensors(tmp_path / "out")
    compared = 0
    for tensor, expected in golden["tensors"].items():
        if tensor not in after:
            continue  # transformers' stacks of experts
        gradient = [(a - b) / RATE for a, b in zip(before[tensor], after[tensor], strict=True)]
        norm = math.sqrt(sum(value * value for value in gradient))
        assert math.isclose(norm, expected["norm"], rel_tol=1e-4, abs_tol=1e-9), tensor
        for place, value in zip(expected["at"], expected["values"]):
            assert abs(gradient[place] - value) <= 1e-4 * expected["norm"], (tensor, place)
        compared += 1
    assert compared >= 10


@pytest.mark.parametrize("line, why", [
    ("{", "line 1: parse error"), ('{"txt": "a"}', 'nor "ids"'), ('{"text": 3}', "no string"), ('{"messages": 1}', "no list"),
    ('{"ids": [1, 99999]}', "vocabulary"), ("", "no text to train on")])
def test_bad_data_is_named(line, why, tmp_path):
    (tmp_path / "train.jsonl").write_text(line + "\n")
    done = run_tandem("train", DEMO_MODEL, "--data", tmp_path, "--out", tmp_path / "out")
    assert done.returncode == 2 and why.encode() in done.stderr and b"train.jsonl" in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


def masked_crc(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_events(path):
    """The records of a TensorBoard file, each with its two checksums right."""
    data, at, events = path.read_bytes(), 0, []
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        event = data[at + 12:at + 12 + length]
        assert struct.unpack_from("<I", data, at + 8) == (masked_crc(data[at:at + 8]),)
        assert struct.unpack_from("<I", data, at + 12 + length) == (masked_crc(event),)
        events.append(event)
        at += 16 + length
    assert at == len(data)
    return events


def test_a_run_leaves_events_and_a_report(tmp_path):
    data = write_data(tmp_path / "data", QUESTIONS)
    write_data(data, QUESTIONS[:4], "valid.jsonl")
    out = tmp_path / "out"
    done = train_some(data, out, "--iters", 6, "--steps-per-report", 2, "--steps-per-eval", 3)
    assert done.returncode == 0, done.stderr.decode()
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "valid_loss" in line] == [0, 3, 6]
    (file,) = out.glob("events.out.tfevents.*")
    version, begun, *events = read_events(file)
    assert b"brain.Event:2" in version and begun.endswith(b":\x02\x08\x01") and len(events) == len(lines)
    for event, line in zip(events, lines):
        for name, value in line.items():
            if name != "step":
                assert bytes([10, len(name)]) + name.encode() + b"\x15" + struct.pack("<f", value) in event, (name, line)
    report = (out / "report.html").read_text()
    assert report.count("<svg") >= 5 and "http" not in report and report.endswith("</html>\n")


@pytest.fixture
def from_scratch(tmp_path):
    """Trains a small V3 of random weights: the loss of each step, and the summary."""
    model, config = tmp_path / "model", json.loads((ROOT / "tests/golden/deepseek-v3-no-q-lora/config.json").read_text())
    model.mkdir()
    (model / "config.json").write_text(json.dumps(config))
    data = write_data(tmp_path / "data", [{"ids": [(start + 3 * i) % 50 for i in range(30)]} for start in range(12)])

    def train(name, *more):
        done = run_tandem("train", model, "--init", "--data", data, "--out", tmp_path / name, "--method", "full", "--iters", 25,
                          "--learning-rate", 3e-3, "--steps-per-report", 1, "--json", "--device", "cpu", *more)
        assert done.returncode == 0, done.stderr.decode()
        return curve_of(tmp_path / name), json.loads(done.stdout)

    return train


def test_a_model_from_scratch_begins_alike_on_any_split_and_learns(tmp_path, from_scratch):
    one, _ = from_scratch("one")
    vocabulary = json.loads((tmp_path / "one/config.json").read_text())["vocab_size"]
    assert abs(one[0] - math.log(vocabulary)) < 0.2 and one[-1] < one[0] / 2
    for name, more in {"tp": ["--ranks", 2], "dp": ["--ranks", 2, "--parallel", "dp"], "sdp": ["--ranks", 3, "--parallel", "sdp"],
                       "pp": ["--ranks", 2, "--parallel", "pp"]}.items():
        assert all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(one, from_scratch(name, *more)[0], strict=True)), name
    assert from_scratch("other", "--seed", 7)[0][0] != one[0]
    (tmp_path / "ids.txt").write_text(" ".join(str(3 * i % 50) for i in range(30)))
    assert perplexity(tmp_path / "one", tmp_path / "ids.txt") < one[0] / 2
    lora = run_tandem("train", ROOT / "tests/golden/qwen2", "--data", tmp_path / "data", "--out", tmp_path / "lora", *SPLITS["sdp 2"])
    assert lora.returncode == 2 and b"--parallel sdp" in lora.stderr
    lora = run_tandem("train", tmp_path / "model", "--init", "--data", tmp_path / "data", "--out", tmp_path / "lora")
    assert lora.returncode == 2 and b"--method full" in lora.stderr


# V3's loss of each sequence's balance, in the gradient alone.
def test_a_loss_of_balance_learns_alike_on_any_split(tmp_path, from_scratch):
    plain, _ = from_scratch("plain")
    one, _ = from_scratch("one", "--balance-loss", 1)
    assert one[0] == plain[0] and not math.isclose(one[-1], plain[-1], rel_tol=1e-3)
    for split in ("recomputed", "tp 2", "dp 2", "sdp 2", "pp 2"):
        found, _ = from_scratch(split, "--balance-loss", 1, *SPLITS[split])
        assert all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(one, found, strict=True)), (split, one, found)
    for model, method, said in ((ROOT / "tests/golden/qwen3-moe", "lora", b"--method full"), (ROOT / "tests/golden/llama-plain", "full", b"no experts")):
        refused = run_tandem("train", model, "--data", tmp_path / "data", "--out", tmp_path / "no", "--balance-loss", 1, "--method",
                             method)
        assert refused.returncode == 2 and b"--balance-loss" in refused.stderr and said in refused.stderr


# V3's balance: the bias of each expert moves by the same step up or down, by what all ranks counted.
def test_experts_are_balanced_alike_on_any_split(tmp_path, from_scratch):
    name, rate = "e_score_correction_bias", 0.01
    found = {}
    for split in ("1 rank", "recomputed", "tp 2", "dp 2", "sdp 2", "pp 2"):
        from_scratch(split, "--balance-rate", rate, *SPLITS[split])
        # By itself in float32, though the rest is saved as bfloat16.
        found[split] = {key: values for key, values in read_tensors(tmp_path / split).items() if key.endswith(name)}
        assert found[split] and all(abs(value / rate - round(value / rate)) < 1e-4 and abs(value) < 25.5 * rate
                                    for values in found[split].values() for value in values)
    first = found["1 rank"]
    assert any(value > 0 for values in first.values() for value in values)
    for split, biases in found.items():
        same = [math.isclose(a, b, abs_tol=1e-6) for key in first for a, b in zip(first[key], biases[key], strict=True)]
        assert sum(same) >= 0.9 * len(same), split  # scores that all but tie may be chosen otherwise
    refused = run_tandem("train", tmp_path / "model", "--data", tmp_path / "data", "--out", tmp_path / "lora", "--balance-rate", rate)
    assert refused.returncode == 2 and b"--balance-rate" in refused.stderr
    refused = run_tandem("train", ROOT / "tests/golden/qwen3-moe", "--data", tmp_path / "data", "--out", tmp_path / "lora", "--method",
                         "full", "--balance-rate", rate)
    assert refused.returncode == 2 and b"e_score_correction_bias" in refused.stderr


# Texts of which one rank has several chunks of logits and the other one: their collectives must meet all the same; and a batch
# of a single text, which leaves a rank without any.
@pytest.mark.parametrize("split", ["dp 2", "sdp 2", "sdp 3"])
def test_replicas_with_unequal_texts_learn_as_one_rank(split, tmp_path):
    data = write_data(tmp_path / "data", [{"ids": [(7 * i + start) % 60 for i in range(length)]}
                                          for start, length in enumerate((600, 40, 30, 700, 50, 620))])
    write_data(data, [{"ids": list(range(2, 30))}], "valid.jsonl")
    config = json.loads((ROOT / "tests/golden/deepseek-v3-no-q-lora/config.json").read_text()) | {"max_position_embeddings": 1024}
    (tmp_path / "config.json").write_text(json.dumps(config))
    curves, valid = [], []
    for name in ("1 rank", split):
        for batch in (1, 3):
            out = tmp_path / f"{name} {batch}"
            done = run_tandem("train", tmp_path, "--init", "--data", data, "--out", out, "--method", "full", "--iters", 2,
                              "--batch-size", batch, "--learning-rate", 1e-3, "--steps-per-report", 1, "--device", "cpu",
                              *SPLITS[name])
            assert done.returncode == 0, done.stderr.decode()
            curves.append(list(zip(curve_of(out), curve_of(out, "gradient_norm"), strict=True)))
            valid.append(curve_of(out, "valid_loss"))
    for one, several in zip(curves[:2], curves[2:], strict=True):
        assert all(math.isclose(a, b, rel_tol=1e-4) for x, y in zip(one, several, strict=True) for a, b in zip(x, y))
    for one, several in zip(valid[:2], valid[2:], strict=True):
        assert one and all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(one, several, strict=True))


# From weights that lie anywhere between the numbers of the half type: those of a bfloat16 checkpoint stay where they are until
# a step's half of an ulp is full.
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("split", ["tp", "dp", "sdp", "pp"])
def test_half_precision_learns_alike(split, dtype, from_scratch):
    exact, _ = from_scratch("float32")
    half, summary = from_scratch("half", "--dtype", dtype, "--ranks", 2, "--parallel", split)
    assert half[-1] < half[0] / 2
    if dtype == "bfloat16":
        assert summary["skipped_steps"] == 0
        assert all(math.isclose(a, b, rel_tol=0.01) for a, b in zip(exact, half, strict=True)), (exact, half)
    else:  # its first scales are too large, so that it begins with steps that change nothing
        assert 0 <= summary["skipped_steps"] < 10


def test_unequal_shares_of_batches_learn_as_one_rank_does(tmp_path):
    data, plan = write_data(tmp_path / "data", QUESTIONS), tmp_path / "plan.json"
    how = ["--method", "full", "--iters", 6]
    one, _ = losses(data, tmp_path / "one", *how)
    for parallel in ("dp", "sdp"):
        ranks = [{"host": "local", "share": share} for share in (1, 3)]
        plan.write_text(json.dumps({"stages": [{"layers": [0, 6], "ranks": ranks}]}))
        found, _ = losses(data, tmp_path / parallel, *how, "--parallel", parallel, "--plan", plan)
        assert all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(one, found, strict=True)), (parallel, one, found)


def test_masked_prompts_learn_alike_on_any_split(tmp_path):
    data, how = write_data(tmp_path / "data", QUESTIONS), ["--method", "full", "--iters", 4, "--mask-prompt"]
    one, _ = losses(data, tmp_path / "one", *how)
    assert one != losses(data, tmp_path / "whole", *how[:-1])[0]
    for split in ("recomputed", "tp 2", "dp 3", "sdp 2", "pp 2", "tp 2 twice"):
        found, _ = losses(data, tmp_path / split, *how, *SPLITS[split])
        assert all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(one, found, strict=True)), (split, one, found)


def test_gradients_that_travel_in_half_the_bytes_learn_alike(tmp_path):
    data, how = write_data(tmp_path / "data", QUESTIONS), ["--method", "full", "--ranks", 2, "--parallel", "dp"]
    exact, _ = losses(data, tmp_path / "float32", *how, "--iters", 12)
    found, _ = losses(data, tmp_path / "bfloat16", *how, "--iters", 12, "--wire", "bfloat16")
    assert exact[0] == found[0] and exact != found  # the loss itself is not rounded
    assert all(math.isclose(a, b, rel_tol=0.03) for a, b in zip(exact, found, strict=True)), (exact, found)


def test_some_layers_recomputed_learn_alike(tmp_path):
    data, how = write_data(tmp_path / "data", QUESTIONS), ["--method", "full", "--iters", 3]
    for split in ("1 rank", "tp 2", "pp 2"):
        found = [losses(data, tmp_path / f"{split}{which}", *how, f"--grad-checkpoint={which}", *SPLITS[split])[0]
                 for which in ("none", "2", "all")]
        assert found[0] == found[1] == found[2], (split, found)
    auto = train_some(data, tmp_path / "auto", *how, "--grad-checkpoint=auto")
    assert auto.returncode == 0 and b"--grad-checkpoint=auto: no layer is recomputed" in auto.stderr, auto.stderr.decode()
    refused = train_some(data, tmp_path / "refused", *how, "--grad-checkpoint=0x2")
    assert refused.returncode == 2 and b"give all, none, auto, or a number of layers" in refused.stderr, refused.stderr


@pytest.mark.parametrize("flags, every", [([], 0), (["--grad-checkpoint"], 1), (["--grad-checkpoint"] * 2, 1),
                                          (["--grad-checkpoint=none"], 0), (["--grad-checkpoint=3"], 3),
                                          (["--grad-checkpoint=auto"], 0)])
def test_which_layers_are_recomputed(flags, every):
    done = run_tandem("bench", DEMO_MODEL, "--train", "full", "--batch", 2, "--prompt", 8, "--repeat", 1, "--device", "cpu",
                      "--ranks", 2, "--parallel", "dp", "--json", *flags)
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout)["recomputed_every"] == every


def test_replicas_that_do_not_fit_are_refused(tmp_path):
    data = write_data(tmp_path / "data", QUESTIONS)
    for split, said in ((["--ranks", 3, "--replicas", 2], b"do not divide into so many equal groups"),
                        (["--ranks", 2, "--replicas", 2, "--parallel", "dp"], b"is for --parallel tp and pp"),
                        (["--ranks", 3, "--replicas", 2, "--parallel", "pp"], b"do not divide into 2 equal groups")):
        refused = train_some(data, tmp_path / "out", *split)
        assert refused.returncode == 2 and said in refused.stderr, refused.stderr


# A stage of unequal ranks, a stage of one; one that has nothing to learn; more steps to go on from on other plans.
def test_stages_learn_as_one_rank_does(tmp_path):
    data = write_data(write_data(tmp_path / "data", QUESTIONS), QUESTIONS[:3], "valid.jsonl")
    ranks = [{"host": "local", "share": share} for share in (1, 3)]
    plan, pairs = tmp_path / "plan.json", tmp_path / "pairs.json"
    plan.write_text(json.dumps({"stages": [{"layers": [0, 4], "ranks": ranks}, {"layers": [4, 6], "ranks": ranks[:1]}]}))
    pairs.write_text(json.dumps({"stages": [{"layers": [0, 4], "ranks": ranks}, {"layers": [4, 6], "ranks": ranks}]}))
    splits = {"one": [], "stages": ["--plan", plan], "pairs": ["--plan", pairs], "recomputed": ["--ranks", 3, "--parallel", "pp", "--grad-checkpoint"]}
    for method in ("full", "lora"):
        found = {}
        for name, split in splits.items():
            out = tmp_path / f"{method}-{name}"
            done = train_some(data, out, "--method", method, "--iters", 6, "--steps-per-report", 1, *split)
            assert done.returncode == 0, done.stderr.decode()
            found[name] = curve_of(out) + curve_of(out, "valid_loss")
        for name in splits:
            assert all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(found["one"], found[name], strict=True)), (method, found)
    for name, split in {"stages": [], "one": ["--plan", plan]}.items():
        done = train_some(data, tmp_path / f"lora-{name}", "--iters", 9, "--resume", *split)
        assert done.returncode == 0, done.stderr.decode()
    one, stages = (read_tensors(tmp_path / f"lora-{name}") for name in ("one", "stages"))
    assert one.keys() == stages.keys()
    for tensor, values in one.items():
        assert all(math.isclose(a, b, rel_tol=1e-2, abs_tol=1e-4) for a, b in zip(values, stages[tensor], strict=True)), tensor


def test_splits_that_training_has_not_are_refused(tmp_path):
    data = write_data(tmp_path / "data", QUESTIONS)
    for split, why in {("--parallel", "dp", "--plan", "pp", "--ranks", 2): b"leave --plan out",
                       ("--parallel", "pp", "--plan", "tp", "--ranks", 2): b"leave --plan out",
                       ("--parallel", "tp", "--ranks", 4, "--replicas", 2, "--backend", "ring"): b"ring does not split",
                       ("--lora-keys", "self_attn.x_proj", "--parallel", "pp", "--ranks", 2): b"self_attn.q_proj"}.items():
        done = train_some(data, tmp_path / "out", "--iters", 1, *split)
        assert done.returncode == 2 and why in done.stderr, done.stderr.decode()
    plan = tmp_path / "plan.json"
    ranks = [{"host": "local", "share": share} for share in (1, 5)]  # whose parts both need a key/value head
    plan.write_text(json.dumps({"stages": [{"layers": [0, 2], "ranks": ranks}]}))
    done = run_tandem("train", folder_of("llama-gqa-6-2"), "--data", write_data(tmp_path / "ids", TEXTS), "--out", tmp_path / "out", "--plan", plan)
    assert done.returncode == 2 and b"without a copy" in done.stderr, done.stderr.decode()


@pytest.mark.parametrize("option, value", [("--clip", "nan"), ("--lora-scale", "inf"), ("--beta1", 1), ("--num-layers", -7),
                                           ("--learning-rate", "inf"), ("--weight-decay", -1)])
def test_numbers_that_no_training_takes(option, value, tmp_path):
    data = write_data(tmp_path / "data", QUESTIONS)
    done = run_tandem("train", DEMO_MODEL, "--data", data, "--out", tmp_path / "out", option, value)
    assert done.returncode == 2 and f"{option}: {value} is not allowed".encode() in done.stderr, done.stderr.decode()


def test_a_tokenizer_of_its_own(tmp_path):
    data = write_data(tmp_path / "data", QUESTIONS + [{"text": "Once upon a time there was a cat. 你好，世界！"}] * 3)
    done = run_tandem("tokenizer", "train", data, tmp_path / "model", "--vocab-size", 512)
    assert done.returncode == 0, done.stderr.decode()
    tokenizer = json.loads((tmp_path / "model/tokenizer.json").read_text())
    special = {token["content"] for token in tokenizer["added_tokens"] if token["special"]}
    assert {"<|begin_of_sentence|>", "<|end_of_sentence|>", "<|User|>", "<|Assistant|>"} <= special and "<think>" not in special
    config = json.loads((ROOT / "tests/golden/deepseek-v3-no-q-lora/config.json").read_text()) | {"vocab_size": 512}
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    done = run_tandem("train", tmp_path / "model", "--init", "--method", "full", "--data", data, "--out", tmp_path / "out",
                      "--iters", 40, "--learning-rate", 3e-3, "--device", "cpu")
    assert done.returncode == 0, done.stderr.decode()
    answer = run_tandem("run", tmp_path / "out", "What is 12 + 5?", "--max-tokens", 8, "--device", "cpu")
    assert answer.returncode == 0 and b"It is" in answer.stdout, answer.stdout
    again = run_tandem("tokenizer", "train", data, tmp_path / "model")
    assert again.returncode == 2 and b"tokenizer.json already" in again.stderr


@pytest.mark.parametrize("name", ["tiny-llama-mlx-4bit", "tiny-deepseek-v3-mlx-4bit"])
def test_all_weights_of_a_quantised_model(name, tmp_path):
    data = write_data(tmp_path / "data", [{"ids": list(range(start, start + 30))} for start in range(1, 9)])
    curves = {}
    for optimizer in ("adamw", "muon", "adafactor"):
        for split in ("1 rank", "tp 2"):
            out = tmp_path / f"{optimizer} {split}"
            done = run_tandem("train", folder_of(name), "--data", data, "--out", out, "--method", "full", "--iters", 3, "--device",
                              "cpu", "--steps-per-report", 1, "--learning-rate", 1e-3, "--optimizer", optimizer, *SPLITS[split])
            assert done.returncode == 0, done.stderr.decode()
            curves[split] = curve_of(out)
        assert all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(*curves.values(), strict=True)), (optimizer, curves)
        assert perplexity(out, write_ids(tmp_path)) != perplexity(folder_of(name), write_ids(tmp_path))


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("optimizer", ["adafactor", "muon"])
def test_optimizers_of_whole_matrices_learn_alike_on_any_split(optimizer, method, tmp_path):
    data, how = write_data(tmp_path / "data", QUESTIONS), ["--optimizer", optimizer, "--method", method]
    one, _ = losses(data, tmp_path / "1 rank", "--iters", 6, *how)
    assert one[-1] < one[0] * (0.9 if method == "full" else 0.99)
    for split in ("tp 2", "dp 2", "pp 2") + (("sdp 2",) if method == "full" else ()):
        found, _ = losses(data, tmp_path / split, "--iters", 6, *how, *SPLITS[split])
        assert all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(one, found, strict=True)), (split, one, found)
    # From the checkpoint of two ranks on one.
    more, _ = losses(data, tmp_path / "1 rank", "--iters", 9, "--resume", *how)
    moved, _ = losses(data, tmp_path / "tp 2", "--iters", 9, "--resume", *how)
    assert all(math.isclose(a, b, rel_tol=2e-4) for a, b in zip(more, moved, strict=True)), (more, moved)


@release_only  # a sanitizer keeps what is freed
def test_eight_bits_of_adamw_take_less_memory(tmp_path):
    data, how = write_data(tmp_path / "data", QUESTIONS), ["--method", "full", "--iters", 4]
    large, small = (losses(data, tmp_path / str(bits), *how, "--optimizer-bits", bits)[1]["peak_bytes"] for bits in (32, 8))
    assert large - small > 25e6  # 5 M values: 40 MB of moments became 10


def test_eight_bits_of_adamw_learn_as_32_do(tmp_path):
    data, how = write_data(tmp_path / "data", QUESTIONS), ["--method", "full", "--lr-schedule", "linear", "--iters", 20]
    exact, _ = losses(data, tmp_path / "32 bit", *how)
    assert exact[-1] < exact[0] / 3
    for split in ("1 rank", "tp 2", "dp 2", "pp 2"):
        found, _ = losses(data, tmp_path / split, *how, "--optimizer-bits", 8, *SPLITS[split])
        assert all(math.isclose(a, b, rel_tol=0.01) for a, b in zip(exact, found, strict=True)), (split, exact, found)
    # From the checkpoint of two ranks on one.
    for name in ("32 bit", "tp 2"):
        bits = ["--optimizer-bits", 8 if name == "tp 2" else 32]
        more, _ = losses(data, tmp_path / name, *how[:-1], 23, "--resume", *bits)
        exact = more if name == "32 bit" else exact
    assert all(math.isclose(a, b, rel_tol=0.02) for a, b in zip(exact, more, strict=True)), (exact, more)
    refused = train_some(data, tmp_path / "refused", "--iters", 1, "--optimizer", "lion", "--optimizer-bits", 8)
    assert refused.returncode == 2 and b"--optimizer-bits 8: is for adamw and adam, not for lion" in refused.stderr, refused.stderr
