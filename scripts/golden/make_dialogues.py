#!/usr/bin/env python3
"""Prints fresh dialogues of the kind that the tiny models of tests/golden were trained on, as text with its special tokens.

usage: make_dialogues.py SEED COUNT

The same SEED and COUNT give the same text. A dialogue has one to four turns, about 24 tokens each.
"""
import argparse
import random

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
CAPITALS = {
    "Thailand": "Bangkok", "Chile": "Santiago", "France": "Paris", "Iraq": "Baghdad", "Canada": "Ottawa",
    "Egypt": "Cairo", "Peru": "Lima", "Spain": "Madrid", "Nepal": "Kathmandu", "Japan": "Tokyo", "Cuba": "Havana",
    "Iran": "Tehran", "Ireland": "Dublin", "Vietnam": "Hanoi", "Turkey": "Ankara", "Sweden": "Stockholm",
    "Poland": "Warsaw", "Italy": "Rome", "Norway": "Oslo", "Ghana": "Accra", "Germany": "Berlin", "China": "Beijing",
    "Greece": "Athens", "Hungary": "Budapest", "Finland": "Helsinki", "Portugal": "Lisbon", "Kenya": "Nairobi",
    "Austria": "Vienna"}
CHINESE_CAPITALS = {"日本": "东京", "中国": "北京", "意大利": "罗马", "法国": "巴黎", "英国": "伦敦", "德国": "柏林"}
NAMES = "Sam Tom Leo Mia Ben Nora Ida Zoe Ada Max".split()
THINGS = "ball coin kite book drum lamp boat shell leaf cake".split()
PLACES = "forest house park river beach market garden school".split()


def addition(rng):
    a, b = rng.randrange(100), rng.randrange(100)
    return f"What is {a} + {b}?", f"{a} + {b} = {a + b}."


def capital(rng):
    country = rng.choice(list(CAPITALS))
    return f"What is the capital of {country}?", f"The capital of {country} is {CAPITALS[country]}."


def chinese_capital(rng):
    country = rng.choice(list(CHINESE_CAPITALS))
    return f"{country}的首都是哪里?", f"{country}的首都是{CHINESE_CAPITALS[country]}。"


def day(rng):
    i = rng.randrange(7)
    return f"Which day comes after {DAYS[i]}?", f"{DAYS[(i + 1) % 7]} comes after {DAYS[i]}."


def month(rng):
    i = rng.randrange(12)
    return f"Which month comes before {MONTHS[i]}?", f"{MONTHS[i - 1]} comes before {MONTHS[i]}."


def sorting(rng):
    numbers = [rng.randrange(100) for _ in range(rng.randint(3, 6))]
    return "Sort these numbers: " + " ".join(map(str, numbers)), " ".join(map(str, sorted(numbers)))


def counting(rng):
    first = rng.randint(1, 12)
    last = first + rng.randint(4, 7)
    return f"Count from {first} to {last}.", ", ".join(map(str, range(first, last + 1))) + "."


def story(rng):
    name, thing, place, other = rng.choice(NAMES), rng.choice(THINGS), rng.choice(PLACES), rng.choice(PLACES)
    return (f"Tell me a story about {name} and a {thing}.",
            f"Once upon a time, {name} found a {thing} at the {place}. {name} took the {thing} to the {other} and showed "
            f"it to a friend. They played with the {thing} until the sun went down. Then {name} went home and slept well.")


# Additions are most of what the model was trained on.
KINDS = [addition] * 7 + [capital, chinese_capital, day, month, sorting, counting, story]


def dialogue(rng):
    turns = (rng.choice(KINDS)(rng) for _ in range(rng.randint(1, 4)))
    return "<|begin_of_sentence|>" + "".join(f"<|User|>{question}<|Assistant|>{answer}<|end_of_sentence|>"
                                             for question, answer in turns)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seed", type=int)
    parser.add_argument("count", type=int)
    args = parser.parse_args()
    source = random.Random(args.seed)
    print("".join(dialogue(source) for _ in range(args.count)), end="")
