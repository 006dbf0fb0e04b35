"""`tandem serve` as its clients see it: the openai package, raw sockets, clients that leave."""
import concurrent.futures
import http.client
import json
import os
import signal
import socket
import time
from urllib.parse import urlsplit

import openai
import pytest
from conftest import DEMO_MODEL, GOLDEN, children

ANSWERS = {case["question"]: case["greedy_text"] for case in GOLDEN["cases"]}
MONTH = "Which month comes before July?"
STORY = "Tell me a story about Tom and a shell."
LONG = {"messages": [{"role": "user", "content": STORY}], "temperature": 5, "ignore_eos": True}  # to the context's end


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=server + "/v1", api_key="none", max_retries=0, timeout=60)


def asked(question):
    return {"model": "demo", "temperature": 0, "messages": [{"role": "user", "content": question}]}


def post(server, path, body, timeout=60):
    """Status and JSON of one POST; `body` is bytes or JSON."""
    connection = http.client.HTTPConnection(urlsplit(server).netloc, timeout=timeout)
    connection.request("POST", path, body if isinstance(body, bytes) else json.dumps(body))
    response = connection.getresponse()
    answer = response.status, json.loads(response.read())
    connection.close()
    return answer


def still_answers(server):
    status, answer = post(server, "/v1/chat/completions", asked(MONTH))
    return status == 200 and answer["choices"][0]["message"]["content"] == ANSWERS[MONTH]


# --- chat


@pytest.mark.parametrize("question", ANSWERS)
def test_chat_gives_the_golden_answer(client, question):
    answer = client.chat.completions.create(**asked(question))
    assert answer.choices[0].message.content == ANSWERS[question]
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    assert abs(answer.created - time.time()) < 60
    usage = answer.usage
    assert usage.prompt_tokens > 0 and usage.completion_tokens > 0
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_chat_streams_the_same_text_with_usage(client):
    whole = client.chat.completions.create(**asked(MONTH))
    chunks = list(client.chat.completions.create(**asked(MONTH), stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == ANSWERS[MONTH]
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert all(c.choices[0].finish_reason is None for c in chunks[:-2])
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert len({c.id for c in chunks}) == 1 and {c.object for c in chunks} == {"chat.completion.chunk"}


def test_a_stream_without_usage_ends_in_done(server):
    connection = http.client.HTTPConnection(urlsplit(server).netloc, timeout=60)
    connection.request("POST", "/v1/chat/completions", json.dumps(asked(MONTH) | {"stream": True}))
    response = connection.getresponse()
    assert response.getheader("Content-Type").startswith("text/event-stream")
    events = [line[6:] for line in response.read().decode().split("\n\n") if line]
    assert events[-1] == "[DONE]"
    assert all(not json.loads(event).get("usage") for event in events[:-1])
    connection.close()


def test_content_parts_roles_and_nulls(client):
    request = asked(MONTH) | {"messages": [
        {"role": "user", "content": [{"type": "text", "text": "Which month "}, {"type": "text", "text": "comes before July?"}]}]}
    nulls = {name: None for name in ("stop", "seed", "top_p", "n", "max_tokens", "stream_options", "response_format")}
    assert client.chat.completions.create(**request, extra_body=nulls).choices[0].message.content == ANSWERS[MONTH]


def test_max_tokens_ends_with_length(client):
    for name in ("max_tokens", "max_completion_tokens"):
        answer = client.chat.completions.create(**asked(STORY), **{name: 5})
        assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 5


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_answer_before_it(client, stream):
    whole = ANSWERS[MONTH]
    stop = whole[len(whole) // 2:][:3]
    request = asked(MONTH) | {"stop": ["never there", stop], "stream": stream}
    answer = client.chat.completions.create(**request)
    if stream:
        chunks = list(answer)
        text = "".join(c.choices[0].delta.content or "" for c in chunks)
        reason = chunks[-1].choices[0].finish_reason
    else:
        text, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
    assert text == whole[:whole.index(stop)] and reason == "stop"


def test_seed_decides_sampling(client):
    def story(seed):
        request = asked(STORY) | {"temperature": 1.5, "seed": seed, "max_tokens": 30}
        return client.chat.completions.create(**request).choices[0].message.content

    assert story(7) == story(7) and story(-1) == story(-1)
    assert len({story(7), story(8), story(-1)}) == 3


# --- completions, models, health

PROMPT = f"<|User|>{MONTH}<|Assistant|>"


def test_completions_take_text_and_token_ids(client):
    ids = next(case["prompt_ids"] for case in GOLDEN["cases"] if case["question"] == MONTH)
    texts = [client.completions.create(model="demo", prompt=prompt, temperature=0, max_tokens=40).choices[0].text
             for prompt in (ids, [ids])]
    assert texts == [ANSWERS[MONTH]] * 2
    one = client.completions.create(model="demo", prompt=PROMPT, temperature=0, max_tokens=40)
    listed = client.completions.create(model="demo", prompt=[PROMPT], temperature=0, max_tokens=40)
    assert one.choices[0].text == listed.choices[0].text and one.object == "text_completion"
    chunks = client.completions.create(model="demo", prompt=PROMPT, temperature=0, max_tokens=40, stream=True)
    assert "".join(c.choices[0].text for c in chunks) == one.choices[0].text
    assert client.completions.create(model="demo", prompt=STORY, temperature=5, extra_body={"ignore_eos": True}) \
        .usage.completion_tokens == 16


def test_models_and_health(server, client):
    name = client.models.list().data[0].id
    assert client.models.retrieve(name).id == name
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")
    connection = http.client.HTTPConnection(urlsplit(server).netloc, timeout=10)
    connection.request("GET", "/health")
    health = json.loads(connection.getresponse().read())
    assert health["status"] == "ok" and [rank["rank"] for rank in health["ranks"]] == [0, 1]
    assert all(rank["weight_bytes"] > 0 for rank in health["ranks"])
    connection.request("HEAD", "/health")  # the connection is kept
    response = connection.getresponse()
    assert response.status == 200 and response.read() == b"" and int(response.getheader("Content-Length")) > 0
    connection.request("GET", "/health")
    assert connection.getresponse().status == 200
    connection.close()


# --- errors

USER = [{"role": "user", "content": "Hi"}]
WRONG_FIELDS = [
    ("messages", {"messages": None}), ("messages", {"messages": []}), ("messages", {"messages": "Hi"}),
    ("messages", {"messages": [5]}), ("messages", {"messages": [{"role": "king", "content": "Hi"}]}),
    ("messages", {"messages": [{"role": "user", "content": 5}]}), ("messages", {"messages": [{"role": "user"}]}),
    ("messages", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}),
    ("temperature", {"temperature": "hot"}), ("temperature", {"temperature": -1}), ("top_p", {"top_p": 0}),
    ("top_p", {"top_p": 1.5}), ("top_k", {"top_k": -3}), ("top_k", {"top_k": 1.5}), ("min_p", {"min_p": 2}),
    ("repetition_penalty", {"repetition_penalty": 0}), ("frequency_penalty", {"frequency_penalty": 3}),
    ("presence_penalty", {"presence_penalty": -3}), ("max_tokens", {"max_tokens": 0}),
    ("max_tokens", {"max_tokens": -1}), ("max_tokens", {"max_tokens": 1.5}), ("max_tokens", {"max_tokens": 2**63}),
    ("max_completion_tokens", {"max_completion_tokens": 0}), ("n", {"n": 2}), ("seed", {"seed": 1.5}),
    ("seed", {"seed": "x"}), ("stop", {"stop": 5}), ("stop", {"stop": ""}), ("stop", {"stop": ["a"] * 5}),
    ("stop", {"stop": ["a", 1]}), ("stop", {"stop": "x" * 2000}), ("stream", {"stream": "yes"}),
    ("stream_options", {"stream_options": 1}), ("tools", {"tools": [{"type": "function"}]}),
    ("functions", {"functions": [{}]}), ("logprobs", {"logprobs": True}), ("top_logprobs", {"top_logprobs": 3}),
    ("response_format", {"response_format": {"type": "json_object"}}), ("response_format", {"response_format": {"type": 5}}),
    ("response_format", {"response_format": "text"}), ("logit_bias", {"logit_bias": {"5": 1}}),
    ("ignore_eos", {"ignore_eos": 1}), ("chat_template_kwargs", {"chat_template_kwargs": []}),
]


@pytest.mark.parametrize("param,change", WRONG_FIELDS, ids=lambda value: json.dumps(value)[:60])
def test_a_wrong_field_is_named(server, param, change):
    status, answer = post(server, "/v1/chat/completions", {"model": "demo", "messages": USER, "max_tokens": 4} | change)
    error = answer["error"]
    assert status == 400, answer
    assert error["type"] == "invalid_request_error" and error["param"].startswith(param) and error["message"]
    assert "code" in error


@pytest.mark.parametrize("prompt", [None, [], 5, ["a", "b"], [[1], [2]], [1, "a"], [[]], [2**40], [1 << 20], [-1], ""])
def test_a_wrong_prompt_is_named(server, prompt):
    status, answer = post(server, "/v1/completions", {"prompt": prompt, "max_tokens": 1})
    # A tokenizer may add a token to "", which is then no empty prompt.
    assert status == 400 and answer["error"]["param"] == "prompt" or prompt == "" and status == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_longer_than_the_context(server, stream):
    status, answer = post(server, "/v1/completions", {"prompt": "Tom " * 20000, "stream": stream})
    assert status == 400 and answer["error"]["param"] == "prompt"
    assert answer["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"5", b'{"a":1e999}', b'{"messages":"\xff\xfe"}', b"[" * 100_000,
                                  b'{"a":' * 50_000 + b"1" + b"}" * 50_000, b'{"messages":[{"role":"user"'])
def test_a_body_that_is_no_request(server, body):
    status, answer = post(server, "/v1/chat/completions", body)
    assert status == 400 and answer["error"]["type"] == "invalid_request_error"


def test_paths_and_methods(server):
    connection = http.client.HTTPConnection(urlsplit(server).netloc, timeout=10)

    def ask(method, path):
        connection.request(method, path)
        response = connection.getresponse()
        return response, response.read()

    response, body = ask("GET", "/v1/nothing")
    assert response.status == 404 and json.loads(body)["error"]["message"]
    response, body = ask("GET", "/v1/chat/completions")
    assert response.status == 405 and "POST" in response.getheader("Allow") and json.loads(body)["error"]["message"]
    assert ask("DELETE", "/health")[0].status == 405
    response, body = ask("OPTIONS", "/v1/chat/completions")
    assert response.status == 204 and "POST" in response.getheader("Allow") and body == b""
    connection.close()


# --- hostile clients


def raw(server, data, seconds=5):
    """Sends bytes and gives all that comes back until the server closes or falls silent."""
    address = urlsplit(server)
    got = b""
    with socket.create_connection((address.hostname, address.port), timeout=seconds) as sock:
        try:
            sock.sendall(data)
            while piece := sock.recv(65536):
                got += piece
                if b"\r\n\r\n" in got and not data.endswith(b"KEEP"):
                    sock.settimeout(1)
        except (TimeoutError, ConnectionError):
            pass
    return got


def request(path="/v1/chat/completions", headers="", body=b""):
    return f"POST {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode() + body


HOSTILE = {
    "garbage": (b"\x00\x01\x02\xff\xfe\r\n\r\n", {400}),
    "TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200, {400}),
    "no HTTP version": (b"GET /health\r\n\r\n", {400}),
    "HTTP/9.9": (b"GET /health HTTP/9.9\r\nHost: x\r\n\r\n", {400, 505}),
    "a space in the path": (b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n", {400}),
    "control byte in a header": (b"GET /health HTTP/1.1\r\nHost: x\r\nA: \x01\r\n\r\n", {400}),
    "header without a colon": (b"GET /health HTTP/1.1\r\nHost x\r\n\r\n", {400}),
    "huge header": (b"GET /health HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 200_000 + b"\r\n\r\n", {431}),
    "many headers": (b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 50_000 + b"\r\n", {431}),
    "huge path": (b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", {431, 414}),
    "announced huge body": (request(headers="Content-Length: 99999999999\r\n"), {413}),
    "sent huge body": (request(headers=f"Content-Length: {17 << 20}\r\n", body=b" " * (17 << 20)), {413}),
    "chunked huge body": (request(headers="Transfer-Encoding: chunked\r\n", body=b"100000\r\n" + b" " * (1 << 20) + b"\r\n")
                          + (b"100000\r\n" + b" " * (1 << 20) + b"\r\n") * 16 + b"0\r\n\r\n", {413}),
    "negative length": (request(headers="Content-Length: -5\r\n"), {400}),
    "length that is no number": (request(headers="Content-Length: five\r\n"), {400}),
    "two lengths": (request(headers="Content-Length: 5\r\nContent-Length: 6\r\n", body=b"12345"), {400}),
    "length and chunked": (request(headers="Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", body=b"0\r\n\r\n"), {400}),
    "bad chunk size": (request(headers="Transfer-Encoding: chunked\r\n", body=b"zz\r\n"), {400}),
    "nested JSON": (request(headers="Content-Length: 200000\r\n", body=b"[" * 200_000), {400}),
    "invalid UTF-8": (request(headers="Content-Length: 10\r\n", body=b'{"a":"\xc3\x28"}'), {400}),
    "a NUL in the path": (b"GET /health\x00 HTTP/1.1\r\nHost: x\r\n\r\n", {400}),
    "half a request, then silence": (b"POST /v1/chat/completions HTT", None),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes(server, name):
    data, statuses = HOSTILE[name]
    got = raw(server, data)
    if statuses:
        assert got.startswith(b"HTTP/1."), got[:100]
        assert int(got.split()[1]) in statuses
        assert b"error" in got
    assert still_answers(server)


def test_pipelined_requests_are_answered_in_order(server):
    got = raw(server, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
                      b"GET /none HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert [got.count(word) for word in (b'"status"', b'"list"', b" 404 ")] == [1, 1, 1]
    assert got.index(b'"status"') < got.index(b'"list"') < got.index(b" 404 ")


def test_expect_continue_and_chunked_body(server):
    body = json.dumps(asked(MONTH)).encode()
    address = urlsplit(server)
    with socket.create_connection((address.hostname, address.port), timeout=30) as sock:
        sock.sendall(request(headers="Transfer-Encoding: chunked\r\nExpect: 100-continue\r\nConnection: close\r\n"))
        assert sock.recv(65536).startswith(b"HTTP/1.1 100")
        half = len(body) // 2
        for piece in (body[:half], body[half:]):
            sock.sendall(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        sock.sendall(b"0\r\n\r\n")
        got = b""
        while piece := sock.recv(65536):
            got += piece
    assert b" 200 " in got and json.loads(got[got.index(b"\r\n\r\n"):])["choices"]


def test_http_1_0_gets_no_chunks(server):
    body = json.dumps(asked(MONTH) | {"stream": True}).encode()
    got = raw(server, f"POST /v1/chat/completions HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    head, _, stream = got.partition(b"\r\n\r\n")
    assert b"chunked" not in head.lower() and stream.startswith(b"data: ") and stream.rstrip().endswith(b"[DONE]")


# --- clients that leave, and many at once


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("queued", [False, True])
def test_a_client_that_leaves_frees_its_place(server, client, stream, queued):
    body = json.dumps(LONG | {"stream": stream}).encode()
    address = urlsplit(server)
    leaving = []
    for _ in range(3 if queued else 1):
        sock = socket.create_connection((address.hostname, address.port), timeout=30)
        sock.sendall(request(headers=f"Content-Length: {len(body)}\r\n", body=body))
        leaving.append(sock)
    time.sleep(0.3)
    for sock in leaving:
        sock.close()
    started = time.monotonic()
    assert client.chat.completions.create(**asked(MONTH)).choices[0].message.content == ANSWERS[MONTH]
    assert time.monotonic() - started < 4


def test_concurrent_requests_all_answer_correctly(client):
    def ask(question):
        if len(question) % 2:
            return client.chat.completions.create(**asked(question)).choices[0].message.content
        return "".join(c.choices[0].delta.content or ""
                       for c in client.chat.completions.create(**asked(question), stream=True))

    questions = list(ANSWERS) * 3
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        assert list(pool.map(ask, questions)) == [ANSWERS[question] for question in questions]


def start_answer(url, stream):
    """A socket on which a long answer has been asked for."""
    body = json.dumps(LONG | {"stream": stream}).encode()
    address = urlsplit(url)
    sock = socket.create_connection((address.hostname, address.port), timeout=30)
    sock.sendall(request(headers=f"Content-Length: {len(body)}\r\n", body=body))
    return sock


def test_a_signal_ends_the_server_with_0(start_server):
    server = start_server(DEMO_MODEL, "--ranks", "2")
    with start_answer(server.url, stream=True) as sock:
        assert sock.recv(100).startswith(b"HTTP/1.1 200")
        server.process.terminate()
        assert server.process.wait(10) == 0


@pytest.mark.parametrize("stream", [True, False])
def test_a_lost_group_is_said_and_ends_the_server_with_1(start_server, stream):
    server = start_server(DEMO_MODEL, "--ranks", "2")
    with start_answer(server.url, stream) as sock:
        got = sock.recv(100) if stream else b""
        time.sleep(0 if stream else 0.1)
        os.kill(max(children(server.process.pid)), signal.SIGKILL)
        try:
            while piece := sock.recv(65536):
                got += piece
        except ConnectionError:
            pass
    assert server.process.wait(10) == 1
    assert b'"server_error"' in got and b"[DONE]" not in got
    assert got.startswith(b"HTTP/1.1 200" if stream else b"HTTP/1.1 503")
    assert not any("bad_function_call" in line or "terminate" in line for line in server.log)
