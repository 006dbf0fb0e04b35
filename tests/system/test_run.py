"""`tandem run`, `demo`, `logits`, `perplexity` as a user types them."""
import json
import math
import os
import subprocess

import pytest
from conftest import (DEMO_MODEL, GOLDEN, PROGRAM, ROOT, Server, release_only, right_of_hundred_additions,
                      run_tandem)

CASES = GOLDEN["cases"]


def run_json(*args):
    done = run_tandem("run", *args, "--json")
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("case", [CASES[2], CASES[4], CASES[8]], ids=lambda case: case["question"])
def test_answers_the_golden_question(case, ranks):
    answer = run_json(DEMO_MODEL, case["question"], "--ranks", ranks)
    assert answer["text"] == case["greedy_text"]
    assert answer["ids"] == case["greedy_ids"][:-1]  # without the end id
    assert answer["finish_reason"] == "end"
    assert len(answer["ranks"]) == ranks


def test_prints_the_answer_alone_on_stdout():
    done = run_tandem("run", DEMO_MODEL, "What is 29 + 31?")
    assert done.stdout == b"29 + 31 = 60.\n"
    assert b"tokens/s" in done.stderr and b"\033" not in done.stderr


def test_prompt_from_stdin_and_raw():
    done = run_tandem("run", DEMO_MODEL, "--raw", "--max-tokens", 8, input="<|User|>What is 29 + 31?<|Assistant|>".encode())
    assert done.stdout.decode().startswith("29 + 31")


def test_ranks_hold_the_model_once_and_what_is_replicated_each():
    alone = run_json(DEMO_MODEL, "Hi")["ranks"][0]
    for ranks in (2, 3, 4):
        parts = run_json(DEMO_MODEL, "Hi", "--ranks", ranks)["ranks"]
        whole = sum(part["weight_bytes"] for part in parts)
        extra = (ranks - 1) * alone["replicated_bytes"]
        assert whole == alone["weight_bytes"] + extra
        assert max(part["weight_bytes"] for part in parts) < alone["weight_bytes"] * 1.2 / ranks + alone["replicated_bytes"]


def test_stages_hold_the_layers_once_and_give_the_bits_of_one_rank(tmp_path):
    alone = run_json(DEMO_MODEL, "Hi")["ranks"][0]
    logits = run_tandem("logits", DEMO_MODEL, "--ids", "5,100,7,300,42").stdout
    shapes = {"two": ["--plan", "pp", "--ranks", 2], "three": ["--plan", "pp", "--hosts", "local,local,local"]}
    layers = lambda *ends: [{"layers": [first, end], "ranks": [{}]} for first, end in zip((0, *ends), ends)]
    for name, stages in {"uneven": layers(1, 6), "six": layers(1, 2, 3, 4, 5, 6)}.items():
        shapes[name] = ["--plan", tmp_path / name]
        (tmp_path / name).write_text(json.dumps({"stages": stages}))
    for name, flags in shapes.items():
        parts = run_json(DEMO_MODEL, "What is 29 + 31?", *flags)
        assert parts["text"] == "29 + 31 = 60.", name
        assert sum(part["weight_bytes"] for part in parts["ranks"]) == alone["weight_bytes"], name
        assert run_tandem("logits", DEMO_MODEL, "--ids", "5,100,7,300,42", *flags).stdout == logits, name
    halves = [part["weight_bytes"] for part in run_json(DEMO_MODEL, "Hi", *shapes["two"])["ranks"]]
    assert max(halves) < 0.54 * alone["weight_bytes"]  # the first layer is smaller than the others


def test_stages_of_two_ranks_share_each_layer(tmp_path):
    alone = run_json(DEMO_MODEL, "Hi")["ranks"][0]
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"stages": [{"layers": [0, 3], "ranks": [{}, {}]}, {"layers": [3, 6], "ranks": [{}, {}]}]}))
    answer = run_json(DEMO_MODEL, "What is 29 + 31?", "--plan", plan)
    assert answer["text"] == "29 + 31 = 60."
    sizes = [part["weight_bytes"] for part in answer["ranks"]]
    assert sum(sizes) == alone["weight_bytes"] + alone["replicated_bytes"]
    assert max(sizes) < 0.28 * alone["weight_bytes"]


def test_threads_and_pinned_cores_change_no_answer():
    core = min(os.sched_getaffinity(0))
    ask = lambda *flags: run_json(DEMO_MODEL, "What is 29 + 31?", *flags)
    for flags, threads in ((["--threads", 3], 3), (["--pin", core], 1), (["--pin", core, "--threads", 2], 2)):
        answer = ask(*flags)
        assert answer["text"] == "29 + 31 = 60."
        assert [rank["threads"] for rank in answer["ranks"]] == [threads]


def test_seed_decides_sampling():
    ask = lambda seed, ranks: run_json(DEMO_MODEL, "Tell me a story about Tom and a shell.", "--temperature", 1.5,
                                       "--max-tokens", 40, "--seed", seed, "--ranks", ranks, "--activations", "float32")["ids"]
    assert ask(1, 1) == ask(1, 1) == ask(1, 2)
    assert ask(1, 1) != ask(2, 1)


def test_demo_prints_plan_questions_speed_and_memory():
    done = run_tandem("demo")
    assert done.returncode == 0
    out, err = done.stdout.decode(), done.stderr.decode()
    assert "27 + 15 = 42." in out and "Paris" in out and "345 + 678 = 1023." in out
    assert "split over 2 ranks" in err and "query heads" in err and "tokens/s" in err and "weights" in err


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_logits_and_perplexity_match_transformers(ranks, tmp_path):
    case = CASES[0]
    ids = ",".join(map(str, case["prompt_ids"]))
    last = len(case["prompt_ids"]) - 1
    done = run_tandem("logits", DEMO_MODEL, "--ids", ids, "--positions", f"0,{last}", "--ranks", ranks)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["position"] for line in lines] == [0, last]
    assert max(abs(a - b) for a, b in zip(lines[1]["logits"], case["last_logits"], strict=True)) < 2e-3

    ids_file = tmp_path / "ids"
    for count, name in ((1000, "mean_nll"), (192, "first_192_mean_nll")):
        ids_file.write_text("\n".join(map(str, GOLDEN["perplexity"]["ids"][:count])))
        done = run_tandem("perplexity", DEMO_MODEL, "--ids-file", ids_file, "--ranks", ranks)
        result = json.loads(done.stdout)
        assert result["tokens"] == count - 1
        assert math.isclose(result["mean_nll"], GOLDEN["perplexity"][name], abs_tol=1e-4)


def test_logits_of_a_folder_without_tokenizer():
    done = run_tandem("logits", ROOT / "tests/golden/qwen3", "--ids", "5,6,7")
    assert [json.loads(line)["position"] for line in done.stdout.splitlines()] == [0, 1, 2]


def test_perplexity_of_a_text(tmp_path):
    text = tmp_path / "text"
    text.write_text("<|User|>What is 29 + 31?<|Assistant|>29 + 31 = 60." * 3)
    result = json.loads(run_tandem("perplexity", DEMO_MODEL, "--text-file", text, "--window", 40).stdout)
    assert 0 < result["mean_nll"] < 10 and math.isclose(result["perplexity"], math.exp(result["mean_nll"]))


def test_model_by_its_hub_name(tmp_path):
    repository = tmp_path / "hub/models--us--demo"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("abc123")
    (repository / "snapshots").mkdir()
    (repository / "snapshots/abc123").symlink_to(DEMO_MODEL)
    import os
    for variables in ({"HF_HOME": str(tmp_path)}, {"HF_HUB_CACHE": str(tmp_path / "hub")}):
        done = run_tandem("run", "us/demo", "What is 29 + 31?", env=os.environ | variables)
        assert done.stdout == b"29 + 31 = 60.\n", done.stderr


def test_without_home_the_systems_entry_of_the_user_names_it(tmp_path):
    import pwd
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "HF_HOME", "HF_HUB_CACHE")}
    done = run_tandem("run", "no/such", "Hi", env=environment, cwd=tmp_path)
    assert done.returncode == 2 and pwd.getpwuid(os.getuid()).pw_dir + "/.cache/huggingface" in done.stderr.decode()


@release_only
def test_hundred_additions():
    """Two ranks, one server: every one of the 100 additions that transformers gets right is right here too."""
    server = Server("serve", DEMO_MODEL, "--port", 0, "--ranks", 2)
    try:
        assert right_of_hundred_additions(server) == GOLDEN["additions_right"] == 100
    finally:
        server.stop()


def test_help_of_every_verb():
    verbs = ["demo", "run", "serve", "logits", "perplexity"]
    overview = run_tandem("--help").stdout.decode()
    for verb in verbs:
        assert verb in overview
        text = run_tandem(verb, "--help").stdout.decode()
        for option in ("--ranks", "--device", "--plan", "--hosts", "--context"):
            assert option in text
        own, cluster = text.split("\nCluster:\n")
        assert "--ranks" in cluster and "--ranks" not in own
    text = run_tandem("train", "--help").stdout.decode()
    assert "--context" not in text and "--kv-" not in text and "--iters INT=1000 " in text and " in [" not in text


@pytest.mark.parametrize("redirection, code, message", [
    ("> /dev/full", 1, "cannot write the result: No space left on device"),
    (">&-", 1, "cannot write the result"),
    ("| true; exit ${PIPESTATUS[0]}", 141, ""),
    ("2>&-", 0, ""),
])
def test_a_result_that_cannot_be_written(redirection, code, message):
    done = subprocess.run(["bash", "-c", f"{PROGRAM} logits {DEMO_MODEL} --ids 5,6,7 {redirection}"],
                          stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    assert done.returncode == code
    lines = [line for line in done.stderr.decode().splitlines() if not line.startswith("context: ")]
    assert len(lines) == (message != "") and all(message in line for line in lines)
