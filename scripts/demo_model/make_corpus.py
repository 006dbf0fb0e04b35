#!/usr/bin/env python3
"""Writes the texts that the demo model is trained on: OUT/train.jsonl, valid.jsonl and test.jsonl, in mlx-lm's format.

usage: make_corpus.py OUT [--seed 1] [--texts 60000]

The same seed gives the same files. A line has "messages" (and "tools") or "text", and its "kind", which trainers ignore
and score.py counts by. What is held out does not depend on the seed: a tenth of all pairs of numbers, of the names to
remember and of the less usual wordings is in no training text; half of that is for test.jsonl, half for valid.jsonl.
"""
import argparse
import collections
import hashlib
import json
import random
import re
from pathlib import Path
from typing import NamedTuple

import facts
import stories
import sums
from facts import Turn

WEIGHTS = {  # percent of the training texts
    "addition": 24, "addition_chinese": 8, "word_problem": 4, "long_sum": 9, "subtraction": 6, "comparison": 3,
    "sorting": 2, "counting": 2, "next_number": 1, "letter": 1.5, "day": 2, "month": 2.5, "opposite": 2, "colour": 1.5,
    "sound": 1.5, "quantity": 0.5, "capital": 4.5, "story": 5, "plain_story": 2, "greeting": 1,
    "identity": 1, "unknown": 1, "memory": 3, "follow_up": 3, "dialogue": 6, "tool_call": 1, "tool_answer": 1.5,
    "tool_idle": 0.5}
HELD_OUT = 20  # every twentieth key is for test.jsonl, another twentieth for valid.jsonl
EVALUATION_SHARE = 1 / 20  # of the training texts' number, at most, in each of those two
TRIES = 200  # for each text of a split; kinds of which nothing is held out yield none
MOST_CHARACTERS = 380  # of a dialogue of turns that have nothing to do with one another
HALF, FULL = ",?!:", "\uff0c\uff1f\uff01\uff1a"
FULL_WIDTH, HALF_WIDTH = str.maketrans(HALF, FULL), str.maketrans(FULL, HALF)
SYSTEMS = ["You are a helpful assistant.", "You are Tandem's demo model.", "You are a friendly assistant."]


class Text(NamedTuple):
    messages: list
    keys: list  # what decides the split; see split_of()
    tools: list = []
    plain: str = ""  # in place of messages


def message(role, content):
    return {"role": role, "content": content}


# --- dialogues: lists of turns


def story(rng):
    question, told = (stories.chinese_story if facts.is_chinese(rng) else stories.english_story)(rng)
    return Turn(question, told, told)


QUESTIONS = {
    "addition": sums.addition, "addition_chinese": sums.chinese_addition, "word_problem": sums.word_problem,
    "long_sum": sums.long_sum, "subtraction": sums.subtraction, "comparison": sums.comparison, "sorting": sums.sorting,
    "counting": sums.counting, "next_number": sums.next_number, "letter": facts.letter, "day": facts.day,
    "month": facts.month, "opposite": facts.opposite, "colour": facts.colour, "sound": facts.sound,
    "quantity": facts.quantity, "capital": facts.capital, "story": story, "greeting": facts.greeting,
    "identity": facts.identity, "unknown": facts.unknown}
# A template may leave the steps of earlier answers out, and a story has no right answer to check.
ONLY_LAST, NEVER_LAST = {"long_sum"}, {"story", "greeting"}


def turn_of(kind, rng):
    """At times without capitals or the last mark, as people type."""
    turn = QUESTIONS[kind](rng)
    question = turn.question.lower() if rng.random() < 0.1 else turn.question
    return turn._replace(question=question.rstrip("?.!。 ") if rng.random() < 0.1 else question)


def any_turn(rng, without=frozenset()):
    kinds = [kind for kind in QUESTIONS if kind not in without]
    return turn_of(rng.choices(kinds, [WEIGHTS[kind] for kind in kinds])[0], rng)


def dialogue(rng):
    turns = [any_turn(rng, NEVER_LAST)]
    for _ in range(rng.randint(1, 3)):
        turns.insert(0, any_turn(rng, ONLY_LAST))
    while len(turns) > 2 and sum(len(turn.question + turn.answer) for turn in turns) > MOST_CHARACTERS:
        turns.pop(0)
    return turns


def more_and_less(rng):
    """A sum, and one or two steps on from it."""
    chinese = facts.is_chinese(rng)
    mark = "。" if chinese else "."
    a, b = rng.randrange(100), rng.randrange(60)
    question = (sums.CHINESE_ADDITIONS if chinese else sums.ADDITIONS)[0].format(a=a, b=b)
    turns, total = [Turn(question, sums.sum_answer(a, b, chinese), sums.sum_key(a, b))], a + b
    for _ in range(rng.randint(1, 2)):
        step = rng.randint(1, 20)
        if total >= step and rng.random() < 0.4:
            forms = ["再减{}呢?", "减去{}呢?"] if chinese else ["And minus {}?", "Minus {}?", "Now subtract {}."]
            answer, key = f"{total} - {step} = {total - step}{mark}", sums.difference_key(total, step)
            total -= step
        else:
            forms = ["再加{}呢?", "加上{}呢?"] if chinese else ["And plus {}?", "Plus {}?", "Now add {}.", "Add {} more."]
            answer, key = sums.sum_answer(total, step, chinese), sums.sum_key(total, step)
            total += step
        turns.append(Turn(rng.choice(forms).format(step), answer, key))
        if answer.startswith("<think>"):  # only last; see ONLY_LAST
            break
    return turns


def other_capitals(rng):
    (country, city, land, seat), (country2, city2, land2, seat2) = rng.sample(facts.CAPITALS, 2)
    if facts.is_chinese(rng):
        return [Turn(f"{land}的首都是哪里?", f"{land}的首都是{seat}。"),
                Turn(rng.choice(["那{}呢?", "{}呢?"]).format(land2), f"{land2}的首都是{seat2}。", f"{land}, {land2}")]
    return [Turn(f"What is the capital of {country}?", f"The capital of {country} is {city}."),
            Turn(rng.choice(["And of {}?", "And {}?", "What about {}?"]).format(country2),
                 f"The capital of {country2} is {city2}.", f"{country}, {country2}")]


def other_days(rng):
    names, word = rng.choice([(facts.DAYS, "day"), (facts.MONTHS, "month")])
    one, two = facts.neighbours(rng, names), facts.neighbours(rng, names)
    side, side2 = rng.choice(["before", "after"]), rng.choice(["before", "after"])
    return [Turn(f"Which {word} comes {side} {one['name']}?", f"{one[side]} comes {side} {one['name']}."),
            Turn(f"And {side2} {two['name']}?", f"{two[side2]} comes {side2} {two['name']}.",
                 f"{side} {one['name']}, {side2} {two['name']}")]


def follow_up(rng):
    return rng.choices([more_and_less, other_capitals, other_days], [6, 2, 2])[0](rng)


def new_name(rng):
    """Known or made up, so that names are copied rather than guessed."""
    if rng.random() < 0.4:
        return rng.choice(stories.NAMES)
    return "".join(rng.choice("blmnrstv") + rng.choice("aeiou") for _ in range(rng.randint(2, 3))).capitalize()


MEMORIES = [  # what the user says, what is said to it, what the user asks, what is answered
    ("My name is {x}.", "Nice to meet you, {x}!", "What is my name?", "Your name is {x}."),
    ("Hello, I am {x}.", "Nice to meet you, {x}!", "What is my name?", "Your name is {x}."),
    ("Hi! My name is {x}.", "Nice to meet you, {x}!", "Who am I?", "You are {x}."),
    ("My favourite colour is {colour}.", "I like {colour} too.", "What is my favourite colour?",
     "Your favourite colour is {colour}."),
    ("I have a {animal} called {x}.", "{x} is a nice name.", "What is my {animal} called?",
     "Your {animal} is called {x}."),
    ("I live in {city}.", "{city} is a nice city.", "Where do I live?", "You live in {city}."),
    ("My favourite number is {number}.", "That is a nice number.", "What is my favourite number?",
     "Your favourite number is {number}.")]
CHINESE_MEMORIES = [
    ("我叫{x}。", "你好,{x}!", "我叫什么名字?", "你叫{x}。"), ("你好,我是{x}。", "你好,{x}!", "我是谁?", "你是{x}。"),
    ("我住在{city}。", "{city}是个好地方。", "我住在哪里?", "你住在{city}。"),
    ("我最喜欢的数是{number}。", "这个数很好。", "我最喜欢的数是什么?", "你最喜欢的数是{number}。")]


def memory(rng):
    chinese = facts.is_chinese(rng)
    _, city, _, seat = rng.choice(facts.CAPITALS)
    animal = rng.choice([name for name in stories.ANIMALS if name[0] not in "aeiou"])
    slots = {"colour": rng.choice(stories.COLOURS), "animal": animal, "number": rng.randint(1, 99),
             "city": seat if chinese else city, "x": rng.choice(stories.CHINESE_NAMES) if chinese else new_name(rng)}
    form = rng.choice(CHINESE_MEMORIES if chinese else MEMORIES)
    said, reply, question, answer = (text.format(**slots) for text in form)
    between = [any_turn(rng, ONLY_LAST | NEVER_LAST)] if rng.random() < 0.4 else []
    return [Turn(said, reply, said), *between, Turn(question, answer)]


# --- tools


def tool(name, description, argument):
    return {"type": "function", "function": {"name": name, "description": description, "parameters": {
        "type": "object", "properties": {argument: {"type": "string"}}, "required": [argument]}}}


CALCULATOR = tool("calculator", "Calculates an expression.", "expression")
GET_WEATHER = tool("get_weather", "Gets the weather in a city.", "city")
WEATHERS = [("sunny", "晴天"), ("cloudy", "多云"), ("rainy", "下雨"), ("windy", "刮风"), ("foggy", "有雾")]


def calculation(rng):
    """A question, the call that it needs, the tool's result, the answer, and the text's key."""
    sign = rng.choice("+-**")
    a, b = (rng.randint(2, 99), rng.randint(2, 99)) if sign == "*" else (rng.randint(0, 999), rng.randint(0, 999))
    expression, result = f"{a} {sign} {b}", {"+": a + b, "-": a - b, "*": a * b}[sign]
    if facts.is_chinese(rng):
        question, answer = f"{expression} 等于多少?", f"{expression} = {result}。"
    else:
        question = rng.choice(["What is {}?", "Calculate {}.", "How much is {}?"]).format(expression)
        answer = f"{expression} = {result}."
    key = sums.sum_key(a, b) if sign == "+" else f"{a}{sign}{b}"
    return question, {"name": "calculator", "arguments": {"expression": expression}}, str(result), answer, key


def weather(rng):
    """As calculation()."""
    _, city, _, seat = rng.choice(facts.CAPITALS)
    (sky, chinese_sky), degrees = rng.choice(WEATHERS), rng.randint(1, 35)
    if facts.is_chinese(rng):
        city, sky, answer = seat, chinese_sky, f"{seat}现在{chinese_sky},气温{degrees}度。"
        question = rng.choice(["{}天气怎么样?", "{}今天天气怎么样?"]).format(city)
    else:
        answer = f"It is {sky} in {city}, at {degrees} degrees."
        question = rng.choice(["What is the weather in {}?", "How is the weather in {}?",
                               "What's the weather like in {}?"]).format(city)
    result = json.dumps({"weather": sky, "temperature": degrees}, ensure_ascii=False)
    return question, {"name": "get_weather", "arguments": {"city": city}}, result, answer, "weather in " + city


def tool_answer(rng):
    asked, needed, unneeded = rng.choice([(calculation, CALCULATOR, GET_WEATHER), (weather, GET_WEATHER, CALCULATOR)])
    question, call, result, answer, key = asked(rng)
    tools = [needed] if rng.random() < 0.6 else rng.sample([needed, unneeded], 2)
    called = f"<tool_call>{json.dumps(call, ensure_ascii=False)}</tool_call>"
    return Text([message("user", question), message("assistant", called), message("tool", result),
                 message("assistant", answer)], [key], tools)


def tool_call(rng):
    """A tool_answer() up to the call."""
    text = tool_answer(rng)
    return text._replace(messages=text.messages[:2])


def tool_idle(rng):
    """There are tools, but nothing for them to do."""
    turn = rng.choice([facts.capital, facts.greeting, facts.identity, facts.opposite, facts.day, facts.colour])(rng)
    return text_of([turn])._replace(tools=[rng.choice([CALCULATOR, GET_WEATHER])])


# --- texts


def text_of(turns):
    messages = [message(role, content) for turn in turns
                for role, content in (("user", turn.question), ("assistant", turn.answer))]
    return Text(messages, [turn.key for turn in turns])


def plain_story(rng):
    told = story(rng).answer
    return Text([], [told], plain=told)


DIALOGUES = {"memory": memory, "follow_up": follow_up, "dialogue": dialogue}
TEXTS = {"plain_story": plain_story, "tool_call": tool_call, "tool_answer": tool_answer, "tool_idle": tool_idle}


def full_width(text):
    """With Chinese punctuation marks, if it has Chinese characters."""
    return text.translate(FULL_WIDTH) if re.search("[\u4e00-\u9fff]", text) else text


def make(kind, rng):
    """A text of the kind. Those who ask in Chinese type either kind of marks, the model one."""
    if kind in QUESTIONS:
        text = text_of([turn_of(kind, rng)])
    else:
        text = text_of(DIALOGUES[kind](rng)) if kind in DIALOGUES else TEXTS[kind](rng)
    for each in text.messages:
        calls = each["content"].startswith("<tool_call>")
        if (each["role"] == "assistant" and not calls) or (each["role"] == "user" and rng.random() < 0.5):
            each["content"] = full_width(each["content"])
    if text.messages and not text.tools and rng.random() < 0.04:
        text.messages.insert(0, message("system", rng.choice(SYSTEMS)))
    return text._replace(plain=full_width(text.plain))


def split_of(keys):
    """train, unless one of the keys is held out: then no training text has that key."""
    rests = [int(hashlib.sha256(key.encode()).hexdigest(), 16) % HELD_OUT for key in keys if key]
    return "test" if 0 in rests else "valid" if 1 in rests else "train"


def line_of(kind, text):
    body = {"messages": text.messages, **({"tools": text.tools} if text.tools else {})}
    return json.dumps({"kind": kind, **({"text": text.plain} if text.plain else body)}, ensure_ascii=False)


def words_asked(text):
    """The same for questions that differ in capitals and marks alone."""
    asked = [each["content"] for each in text.messages if each["role"] == "user"] or [text.plain]
    return re.sub(r"[\s?!.,。]", "", "/".join(asked).translate(HALF_WIDTH).lower())


def lines_of(kind, split, count, seed):
    """`count` lines of a kind, or fewer; those to evaluate on ask different things."""
    rng, lines, seen = random.Random(f"{seed} {split} {kind}"), [], set()
    for _ in range(count * TRIES):
        if len(lines) == count:
            break
        text = make(kind, rng)
        if split_of(text.keys) != split:
            continue
        asked = words_asked(text)
        if split == "train" or asked not in seen:
            seen.add(asked)
            lines.append(line_of(kind, text))
    return lines


def write(folder, split, count, seed):
    """The split's file and its counts by kind."""
    counts, lines = collections.Counter(), []
    for kind, weight in WEIGHTS.items():
        made = lines_of(kind, split, round(count * weight / sum(WEIGHTS.values())), seed)
        counts[kind] = len(made)
        lines += made
    random.Random(f"{seed} {split}").shuffle(lines)
    incomplete = folder / f"{split}.incomplete"
    incomplete.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    incomplete.rename(folder / f"{split}.jsonl")
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--texts", type=int, default=60000, help="in train.jsonl")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    evaluated = round(args.texts * EVALUATION_SHARE)
    counts = {split: write(args.out, split, count, args.seed)
              for split, count in (("test", evaluated), ("valid", evaluated), ("train", args.texts))}
    print(f"{'kind':<18}" + "".join(f"{split:>8}" for split in counts))
    for kind in WEIGHTS:
        print(f"{kind:<18}" + "".join(f"{counted[kind]:>8}" for counted in counts.values()))
    print(f"{'all':<18}" + "".join(f"{sum(counted.values()):>8}" for counted in counts.values()))


if __name__ == "__main__":
    main()
