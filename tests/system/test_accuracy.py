"""What int8 activations and 8-bit caches cost. Activations: the mean NLL of fresh dialogues against float32 activations on the same quantised weights,
which equal the product with the weights dequantised (tests/kernels: QuantisedProductsInFloat32AreThoseOfTheDequantised).
"""
import json
import subprocess
import sys

import pytest
from conftest import DEMO_MODEL, ROOT, release_only, run_tandem

DEEPSEEK = ROOT / "tests/golden/tiny-deepseek-v3-mlx-4bit"
MLX_4BIT = ROOT / "tests/golden/tiny-llama-mlx-4bit"
SEED, DIALOGUES = 4, 120
WINDOW = 192  # tokens
FEW = 6000  # characters of the dialogues


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory):
    made = subprocess.run([sys.executable, ROOT / "scripts/golden/make_dialogues.py", str(SEED), str(DIALOGUES)],
                          capture_output=True, check=True)
    file = tmp_path_factory.mktemp("dialogues") / "dialogues.txt"
    file.write_bytes(made.stdout)
    return file


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The demo model's folder at so many bits."""
    folder = tmp_path_factory.mktemp("quantised") / "8bit"
    done = run_tandem("quantize", DEMO_MODEL, folder, "--bits", 8)
    assert done.returncode == 0, done.stderr
    return {4: MLX_4BIT, 8: folder}


def mean_nll(model, text, activations="float32", kv_bits=16, least_tokens=5000):
    done = run_tandem("perplexity", model, "--text-file", text, "--window", WINDOW, "--device", "cpu",
                      "--activations", activations, "--kv-bits", kv_bits)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["tokens"] >= least_tokens
    return result["mean_nll"]


@release_only
@pytest.mark.parametrize("bits, bar", [(8, 0.005), (4, 0.02)])
def test_int8_activations_move_the_mean_nll_little(checkpoint, dialogues, bits, bar):
    exact, rounded = (mean_nll(checkpoint[bits], dialogues, a) for a in ("float32", "auto"))
    print(f"{bits} bit: {exact:.6f} with float32 activations, {rounded:.6f} with int8: {rounded / exact - 1:+.4%}")
    assert rounded != exact, "the activations were not rounded"
    assert abs(rounded / exact - 1) < bar


# A code is off by at most 1/254 of the largest of the 32 numbers that share its scale, as an int8 activation is; but
# these are rounded before every product, so what they may cost at 8 bit is the bar here too.
@release_only
@pytest.mark.parametrize("model", [MLX_4BIT, DEEPSEEK], ids=["heads", "latents"])
def test_8_bit_caches_move_the_mean_nll_little(dialogues, model, tmp_path):
    few = tmp_path / "few.txt"
    few.write_text(dialogues.read_text()[:FEW])
    exact, rounded = (mean_nll(model, few, kv_bits=bits, least_tokens=1000) for bits in (16, 8))
    print(f"{model.name}: {exact:.6f} as computed, {rounded:.6f} in 8 bit: {rounded / exact - 1:+.4%}")
    assert rounded != exact, "the cache was not rounded"
    assert abs(rounded / exact - 1) < 0.005
