#!/usr/bin/env python3
"""Counts how many questions of OUT/test.jsonl a running `tandem serve` answers word for word, by kind.

usage: score.py OUT [--url http://127.0.0.1:8080] [--limit 200] [--parallel 4] [--wrong 0] [--json]

Each text's last answer is asked for, greedily, after the text's own earlier turns; where the model thinks, only what it
says afterwards counts. Stories, which have no one right answer, are left out. --wrong shows so many wrong answers of
each kind.
"""
import argparse
import concurrent.futures
import json
import re
import sys
import urllib.error
import urllib.request
from pathlib import Path

UNCHECKED = {"story", "plain_story"}
MOST_TOKENS = 250
TIMEOUT_S = 120


def read_tests(file, limit):
    """The checkable lines, at most `limit` of a kind, by kind; additions first, then as the file has them."""
    kinds = {"addition": [], "addition_chinese": []}
    for line in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
        if line["kind"] not in UNCHECKED:
            kinds.setdefault(line["kind"], []).append(line)
    return {kind: lines[:limit] for kind, lines in kinds.items() if lines}


def post(url, body):
    request = urllib.request.Request(url + "/v1/chat/completions", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        return json.load(response)


def ask(url, messages, tools):
    """The answer's message. A server that refuses "tools" is given them as a variable of the chat template."""
    body = {"model": "demo", "temperature": 0, "max_tokens": MOST_TOKENS, "messages": messages}
    if not tools:
        return post(url, body)["choices"][0]["message"]
    try:
        answer = post(url, body | {"tools": tools})
    except urllib.error.HTTPError as error:
        if error.code != 400:
            raise
        answer = post(url, body | {"chat_template_kwargs": {"tools": tools}})
    return answer["choices"][0]["message"]


def call_of(function):
    """A tool call in a form that can be compared."""
    arguments = function["arguments"]
    return {"name": function["name"],
            "arguments": json.loads(arguments) if isinstance(arguments, str) else arguments}


def meaning(message):
    """What is compared: the call, if it is one that can be read, or the words after the thinking."""
    content = (message.get("content") or "").split("</think>")[-1].strip()
    written = re.fullmatch(r"<tool_call>(.*)</tool_call>", content, re.DOTALL)
    try:
        if message.get("tool_calls"):
            return call_of(message["tool_calls"][0]["function"])
        return call_of(json.loads(written[1])) if written else content
    except (ValueError, KeyError, TypeError):
        return content


def score(url, lines, pool):
    """How many are right, and the wrong ones: question, answer, right answer."""
    answers = pool.map(lambda line: ask(url, line["messages"][:-1], line.get("tools")), lines)
    pairs = [(line["messages"][-2]["content"], meaning(answer), meaning(line["messages"][-1]))
             for line, answer in zip(lines, answers)]
    wrong = [pair for pair in pairs if pair[1] != pair[2]]
    return len(pairs) - len(wrong), wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="make_corpus.py's folder")
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--limit", type=int, default=200, help="questions of each kind")
    parser.add_argument("--parallel", type=int, default=4, help="questions asked at once")
    parser.add_argument("--wrong", type=int, default=0, help="wrong answers of each kind to show")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    result, url = {}, args.url.rstrip("/").removesuffix("/v1")
    with concurrent.futures.ThreadPoolExecutor(args.parallel) as pool:
        for kind, lines in read_tests(args.out / "test.jsonl", args.limit).items():
            right, wrong = score(url, lines, pool)
            result[kind] = {"right": right, "asked": len(lines)}
            if not args.json:
                print(f"{kind:<18}{right:>5} of {len(lines):>4}  {right / len(lines):>7.1%}", flush=True)
            for question, answer, expected in wrong[:args.wrong]:
                print(f"    {question!r}: {answer!r}, not {expected!r}", file=sys.stderr)
    right, asked = (sum(counts[name] for counts in result.values()) for name in ("right", "asked"))
    if args.json:
        print(json.dumps({"kinds": result, "right": right, "asked": asked}))
    else:
        print(f"{'all':<18}{right:>5} of {asked:>4}  {right / asked:>7.1%}")


if __name__ == "__main__":
    main()
