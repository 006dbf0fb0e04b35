"""`tandem bench` of a model folder and of random weights of a shape."""
import json

import pytest
from conftest import DEMO_MODEL, ROOT, run_tandem

TINY = {"model_type": "llama", "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 256, "vocab_size": 320, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 256}
MATRIX_ELEMENTS = 2 * (128 * 128 * 2 + 128 * 64 * 2 + 128 * 256 * 3) + 320 * 128  # those that a step reads
NORM_ELEMENTS = 5 * 128


@pytest.fixture
def shape(tmp_path):
    file = tmp_path / "tiny.json"
    file.write_text(json.dumps(TINY))
    return file


def bench(*args):
    done = run_tandem("bench", *args, "--prompt", 20, "--generate", 5, "--repeat", 3, "--json")
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr.decode().count("repeat") == 3
    return json.loads(done.stdout)


@pytest.mark.parametrize("ranks", [1, 2])
def test_json_of_the_demo_model(ranks):
    result = bench(DEMO_MODEL, "--ranks", ranks, "--threads", 1)
    assert result["model"] == "demo-model" and len(result["ranks"]) == ranks
    for phase in ("prefill", "decode"):
        speed = result[phase]["tokens_per_s"]
        assert 0 < speed["least"] <= speed["median"] <= speed["most"]
        assert len(result[phase]["repeats_s"]) == 3
        for rank in result["ranks"]:
            shares = rank[phase]
            assert all(0 <= shares[part] <= 1.05 for part in ("compute", "link", "rest"))
            assert sum(shares[part] for part in ("compute", "link", "rest")) == pytest.approx(1, abs=0.05)
            assert shares["link"] == 0 or ranks > 1
    for rank in result["ranks"]:
        assert rank["threads"] == 1
        assert 0 < rank["step_bytes"] and 0 < rank["cache_bytes"] < rank["resident_bytes"] <= rank["peak_bytes"]
    read = result["decode"]["tokens_per_s"]["median"] * sum(rank["step_bytes"] for rank in result["ranks"])
    assert result["decode"]["read_bytes_per_s"] == pytest.approx(read)


@pytest.mark.parametrize("bits, bits_a_weight", [("16", 16), ("bf16", 16), ("8", 8.5), ("4", 4.5)])
def test_random_weights_of_a_shape(shape, bits, bits_a_weight):
    result = bench("--shape", shape, "--bits", bits)
    assert result["model"] == "tiny"
    rank = result["ranks"][0]
    matrix_bytes = MATRIX_ELEMENTS * bits_a_weight / 8
    embedding_bytes = 320 * 128 * bits_a_weight / 8
    assert rank["step_bytes"] == matrix_bytes + NORM_ELEMENTS * 4  # a CPU's norms are float32
    assert rank["weight_bytes"] == matrix_bytes + embedding_bytes + NORM_ELEMENTS * 2  # as they are read


def test_sequences_at_a_time(shape):
    alone, together = bench("--shape", shape), bench("--shape", shape, "--batch", 4)
    for phase in ("prefill", "decode"):
        assert together[phase]["tokens"] == 4 * alone[phase]["tokens"]
    read = together["decode"]["tokens_per_s"]["median"] / 4 * together["ranks"][0]["step_bytes"]
    assert together["decode"]["read_bytes_per_s"] == pytest.approx(read)


MIXTURE = TINY | {"model_type": "qwen3_moe", "num_experts": 16, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
EXPERT_BYTES = 3 * 128 * 64 * 4.5 / 8  # of one of a layer's 16


def read_by(tmp_path, chosen, batch, ranks=1):
    """Bytes of weights that decode reads a token: counted, and what the active experts weigh."""
    file = tmp_path / f"{chosen}.json"
    file.write_text(json.dumps(MIXTURE | {"num_experts_per_tok": chosen}))
    result = bench("--shape", file, "--bits", 4, "--group", 32 if ranks > 1 else 64, "--batch", batch, "--ranks", ranks)
    return (sum(rank["decode"]["counted_bytes_per_token"] for rank in result["ranks"]),
            sum(rank["step_bytes"] for rank in result["ranks"]))


def test_decode_reads_the_active_experts_alone(tmp_path):
    two, active = read_by(tmp_path, 2, 1)
    assert two == pytest.approx(active, rel=0.03) and two <= active  # norms and the router's bias are not counted
    four, _ = read_by(tmp_path, 4, 1)
    assert four - two == 2 * 2 * EXPERT_BYTES  # two more in each of two layers
    everything, _ = read_by(tmp_path, 16, 1)
    assert everything - two == 14 * 2 * EXPERT_BYTES


def test_sequences_share_what_they_choose_alike(tmp_path):
    alone, _ = read_by(tmp_path, 2, 1)
    together, _ = read_by(tmp_path, 2, 8)  # a token's part of what eight read
    everything, _ = read_by(tmp_path, 16, 1)
    assert together < alone < 8 * together < 2 * everything  # more experts than one token chooses


def test_ranks_read_the_active_experts_between_them(tmp_path):
    counted, active = read_by(tmp_path, 2, 1, ranks=2)
    assert counted == pytest.approx(active, rel=0.05)


@pytest.mark.parametrize("changes", [
    {"hidden_size": 1 << 20, "num_hidden_layers": 1000, "vocab_size": 1 << 22},
    MIXTURE | {"num_experts": 1 << 16, "num_experts_per_tok": 1 << 16, "moe_intermediate_size": 1 << 20},
])
def test_a_shape_beyond_the_machines_memory_is_refused(tmp_path, changes):
    file = tmp_path / "vast.json"
    file.write_text(json.dumps(TINY | changes))
    done = run_tandem("bench", "--shape", file, "--bits", 4, "--prompt", 8, "--repeat", 1)
    assert done.returncode == 2 and b"GB of memory" in done.stderr, done.stderr


def test_ranks_share_random_weights(shape):
    alone = bench("--shape", shape, "--bits", 4)["ranks"][0]
    parts = bench("--shape", shape, "--bits", 4, "--ranks", 2)["ranks"]
    assert sum(part["weight_bytes"] for part in parts) == alone["weight_bytes"] + alone["replicated_bytes"]


def test_stages_make_only_their_layers(shape):
    alone = bench("--shape", shape, "--bits", 4)["ranks"][0]
    parts = bench("--shape", shape, "--bits", 4, "--ranks", 2, "--plan", "pp", "--batch", 3)["ranks"]
    assert sum(part["weight_bytes"] for part in parts) == alone["weight_bytes"]
    assert sum(part["step_bytes"] for part in parts) == alone["step_bytes"]


def test_group_changes_the_scales(shape):
    per_weight = {group: bench("--shape", shape, "--bits", 4, "--group", group)["ranks"][0]["weight_bytes"]
                  for group in (32, 64, 128)}
    assert per_weight[32] > per_weight[64] > per_weight[128]


def test_table_with_units():
    done = run_tandem("bench", DEMO_MODEL, "--prompt", 8, "--generate", 2, "--repeat", 1)
    out = done.stdout.decode()
    for word in ("prefill", "decode", "tokens/s", "least..most", "GB/s", "weights", "cache", "compute", "link", "%"):
        assert word in out, out
    alone = run_tandem("bench", DEMO_MODEL, "--prompt", 0, "--generate", 2, "--repeat", 1).stdout.decode()
    assert "decode" in alone and "prefill" not in alone


WRONG = {
    "nothing": ([], ["MODEL", "--shape"]),
    "bits of a model": ([DEMO_MODEL, "--bits", 4], ["--bits requires --shape"]),
    "group of a model": ([DEMO_MODEL, "--group", 32], ["--group requires --shape"]),
    "both": ([DEMO_MODEL, "--shape", ROOT / "bench/shapes/1b.json"], ["one of the two"]),
    "too many sequences": ([DEMO_MODEL, "--batch", 1000], ["--batch", "1000"]),
    "nothing to measure": ([DEMO_MODEL, "--prompt", 0, "--generate", 0], ["--prompt 0"]),
    "unknown bits": (["--shape", ROOT / "bench/shapes/1b.json", "--bits", 3], ["--bits", "bf16"]),
    "unknown group": (["--shape", ROOT / "bench/shapes/1b.json", "--group", 48], ["--group", "64"]),
    "missing shape": (["--shape", "/no/shape.json"], ["/no/shape.json"]),
    "shape of another family": (["--shape", DEMO_MODEL / "tokenizer_config.json"], ["model_type"]),
    "longer than the context": ([DEMO_MODEL, "--prompt", 5000], ["--prompt", "5000 tokens", "context of 1024"]),
    "longer than --context": ([DEMO_MODEL, "--prompt", 100, "--generate", 1, "--context", 100], ["--prompt", "--context"]),
    "an answer that does not fit": ([DEMO_MODEL, "--generate", 1023], ["--generate", "1023 tokens", "context of 1024"]),
    "more stages than layers": ([DEMO_MODEL, "--plan", "pp", "--ranks", 7], ["7 pipeline stages", "6 layers"]),
    "stages without tcp": ([DEMO_MODEL, "--plan", "pp", "--ranks", 2, "--backend", "ring"], ["--backend ring", "tcp"]),
    "no such plan": ([DEMO_MODEL, "--plan", "/no/plan.json"], ["/no/plan.json"]),
    "a plan's own ranks": ([DEMO_MODEL, "--plan", "/no/plan.json", "--ranks", 2], ["--ranks", "names the ranks itself"]),
    "no repeats": ([DEMO_MODEL, "--repeat", 0], ["--repeat"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_flags(name):
    args, words = WRONG[name]
    done = run_tandem("bench", *args)
    message = done.stderr.decode()
    assert done.returncode == 2, message
    assert done.stdout == b""
    for word in words:
        assert word in message
