"""How long a context may be: what bounds it, who is told, and what happens to what does not fit."""
import json
import re
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from conftest import DEMO_MODEL, run_tandem

BLOCK = 256  # tokens: caches grow in such steps
STORIES = [f"Tell me a story about a {thing}." for thing in ("dog", "cat", "shell", "boat", "ball")]


def get(url):
    with urllib.request.urlopen(url) as answer:
        return json.loads(answer.read())


def ask(url, prompt, **fields):
    """Status and JSON body of one completion."""
    body = {"prompt": prompt, "temperature": 0, "ignore_eos": True} | fields
    request = urllib.request.Request(url + "/v1/completions", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def texts_at_once(url, **fields):
    with ThreadPoolExecutor(len(STORIES)) as pool:
        answers = list(pool.map(lambda prompt: ask(url, prompt, **fields), STORIES))
    assert [status for status, _ in answers] == [200] * len(STORIES), answers
    return [body["choices"][0]["text"] for _, body in answers], [body["timings"] for _, body in answers]


def test_requests_that_do_not_fit_together_answer_in_turn(start_server):
    free = start_server(DEMO_MODEL, "--ranks", 2).url
    health = get(free + "/health")
    assert health["context"] == 1024
    assert health["cache_tokens"] >= 1024
    expected, _ = texts_at_once(free, max_tokens=270)

    room = 2 * BLOCK * health["cache_token_bytes"]
    narrow = start_server(DEMO_MODEL, "--ranks", 2, "--kv-memory", room).url
    health = get(narrow + "/health")
    assert (health["context"], health["cache_tokens"]) == (2 * BLOCK, 2 * BLOCK)
    assert get(narrow + "/v1/models")["data"][0]["max_model_len"] == 2 * BLOCK
    texts, timings = texts_at_once(narrow, max_tokens=270)
    assert texts == expected
    # One after the other: the last waited for the work of all others.
    longest = max(timings, key=lambda t: t["queued_s"])
    work = sum(t["prefill_s"] + t["decode_s"] for t in timings) - longest["prefill_s"] - longest["decode_s"]
    assert longest["queued_s"] > 0.8 * work
    for rank in get(narrow + "/health")["ranks"]:
        assert 0 < rank["cache_bytes"] <= room


def test_a_request_beyond_the_limit_is_refused(start_server):
    url = start_server(DEMO_MODEL, "--context", 100).url
    assert get(url + "/health")["context"] == 100
    status, answer = ask(url, list(range(5, 105)))
    assert status == 400
    assert answer["error"]["code"] == "context_length_exceeded"
    assert "100 tokens" in answer["error"]["message"] and "holds 100" in answer["error"]["message"]
    status, answer = ask(url, list(range(5, 104)), max_tokens=50)
    assert status == 200 and answer["usage"]["completion_tokens"] == 1
    assert answer["choices"][0]["finish_reason"] == "length"


def test_the_limit_is_named_at_the_start():
    done = run_tandem("run", DEMO_MODEL, "Hi", "--context", 200)
    assert done.returncode == 0
    assert re.search(rb"context: 200 tokens \(--context; the model's is 1024\).* [\d.]+ kB a token", done.stderr)
    done = run_tandem("run", DEMO_MODEL, "Hi")
    assert b"context: 1024 tokens (the model's)" in done.stderr


@pytest.mark.parametrize("args, words", [
    (["--context", 5000], ["--context 5000", "1024", "the model's"]),
    (["--context", 600, "--kv-memory", "1MB"], ["--context 600", "--kv-memory"]),
    (["--kv-memory", "900TB"], ["--kv-memory", "this machine"]),
    (["--kv-memory", "1KB"], ["--kv-memory", "256 tokens"]),
    (["--kv-memory", "100"], ["--kv-memory 100 B"]),
    (["--kv-memory", "0"], ["--kv-memory", "500MB"]),
    (["--kv-memory", "8XB"], ["--kv-memory \"8XB\"", "500MB"]),
    (["--context", 0], ["--context"]),
])
def test_wrong_limits(args, words):
    done = run_tandem("run", DEMO_MODEL, "Hi", *args)
    assert done.returncode == 2
    for word in words:
        assert word in done.stderr.decode()


@pytest.mark.parametrize("ranks", [1, 2])
def test_8_bit_caches_are_small_and_answer_alike(ranks):
    def run(verb, *args):
        done = run_tandem(verb, DEMO_MODEL, *args, "--json", "--device", "cpu", "--ranks", ranks)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    assert run("run", "What is 29 + 31?", "--kv-bits", 8)["text"] == "29 + 31 = 60."
    sizes = {bits: [rank["cache_bytes"] for rank in
                    run("bench", "--prompt", 300, "--generate", 0, "--repeat", 1, "--kv-bits", bits)["ranks"]]
             for bits in (8, 16)}
    # 32 numbers: floats, or codes and a scale in bfloat16.
    assert all(size > 0 for size in sizes[16])
    assert [size * 32 * 4 for size in sizes[8]] == [size * (32 + 2) for size in sizes[16]]
