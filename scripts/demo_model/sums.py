"""Questions about numbers. Each maker takes a random.Random and gives a Turn. Its key names the numbers: those held out
are in no training text, whatever its words."""
from facts import Turn, is_chinese
from stories import CHINESE_NAMES, NAMES

ADDITIONS = ["What is {a} + {b}?", "What is {a} plus {b}?", "{a} + {b} = ?", "{a}+{b}=?", "{a} + {b}",
             "Add {a} and {b}.", "How much is {a} + {b}?", "Calculate {a} + {b}.", "What's {a}+{b}?",
             "Please add {a} and {b}.", "What is the sum of {a} and {b}?"]
CHINESE_ADDITIONS = ["{a} + {b} 等于多少?", "{a}加{b}等于多少?", "{a}+{b}等于几?", "{a}加{b}是多少?", "计算{a} + {b}。",
                     "请问{a}加{b}等于多少?"]
SUBTRACTIONS = ["What is {a} - {b}?", "What is {a} minus {b}?", "{a} - {b} = ?", "{a}-{b}=?", "Subtract {b} from {a}.",
                "How much is {a} - {b}?", "Calculate {a} - {b}.", "What's {a}-{b}?"]
CHINESE_SUBTRACTIONS = ["{a} - {b} 等于多少?", "{a}减{b}等于多少?", "{a}-{b}等于几?", "{a}减{b}是多少?"]
OBJECTS = "apples books balls coins shells stones cakes keys hats pens cards eggs".split()
GAINS = [  # of a and b, with their sum c
    ("{name} has {a} {things} and gets {b} more. How many {things} does {name} have now?",
     "{a} + {b} = {c}. {name} has {c} {things}."),
    ("There are {a} {things} in one box and {b} in another. How many {things} are there?",
     "{a} + {b} = {c}. There are {c} {things}."),
    ("{name} has {a} {things}. {other} has {b}. How many {things} do they have together?",
     "{a} + {b} = {c}. They have {c} {things}.")]
LOSSES = [  # of c and b, with their difference a
    ("{name} has {c} {things} and gives {b} to {other}. How many {things} does {name} have left?",
     "{c} - {b} = {a}. {name} has {a} {things} left."),
    ("There are {c} {things} in a box. {name} takes {b}. How many {things} are left?",
     "{c} - {b} = {a}. There are {a} {things} left.")]
CHINESE_GAIN = ("{name}有{a}个苹果,又买了{b}个。{name}一共有多少个苹果?", "{a} + {b} = {c}。{name}一共有{c}个苹果。")
CHINESE_LOSS = ("{name}有{c}个苹果,吃了{b}个。{name}还有多少个苹果?", "{c} - {b} = {a}。{name}还有{a}个苹果。")
STEP, CHINESE_STEP = "{terms} = {total}, carry {carry}: {written}", "{terms} = {total},进{carry}:{written}"


def sum_key(a, b):
    """The same for a + b and b + a. Sums of two digits are never held out: all others are made of them."""
    return f"{min(a, b)}+{max(a, b)}" if max(a, b) > 9 else ""


def difference_key(a, b):
    return f"{a}-{b}"


def one_of(rng, forms):
    return forms[0] if rng.random() < 0.35 else rng.choice(forms)


def added_by_digits(a, b, step):
    """The steps of a + b from the last digits to the first; after the colon what is written so far."""
    lines, carry, written = [], 0, ""
    while a or b or carry:
        total = a % 10 + b % 10 + carry
        terms = f"{a % 10} + {b % 10}" + (" + 1" if carry else "")
        a, b, carry, written = a // 10, b // 10, total // 10, f"{total % 10}{written}"
        lines.append(step.format(terms=terms, total=total, carry=carry, written=written))
    return "\n".join(lines)


def sum_answer(a, b, chinese=False):
    """With the steps to it if a number has more than two digits."""
    answer = f"{a} + {b} = {a + b}" + ("。" if chinese else ".")
    if max(a, b) < 100:
        return answer
    return f"<think>\n{added_by_digits(a, b, CHINESE_STEP if chinese else STEP)}\n</think>\n\n{answer}"


def addition(rng):
    a, b = rng.randrange(100), rng.randrange(100)
    return Turn(one_of(rng, ADDITIONS).format(a=a, b=b), sum_answer(a, b), sum_key(a, b))


def chinese_addition(rng):
    a, b = rng.randrange(100), rng.randrange(100)
    return Turn(one_of(rng, CHINESE_ADDITIONS).format(a=a, b=b), sum_answer(a, b, chinese=True), sum_key(a, b))


def word_problem(rng):
    a, b = rng.randint(2, 60), rng.randint(2, 39)
    gains, chinese = rng.random() < 0.6, is_chinese(rng)
    if chinese:
        question, answer = CHINESE_GAIN if gains else CHINESE_LOSS
    else:
        question, answer = rng.choice(GAINS if gains else LOSSES)
    name, other = rng.sample(CHINESE_NAMES if chinese else NAMES, 2)
    slots = {"a": a, "b": b, "c": a + b, "name": name, "other": other, "things": rng.choice(OBJECTS)}
    return Turn(question.format(**slots), answer.format(**slots), sum_key(a, b) if gains else difference_key(a + b, b))


def long_sum(rng):
    """At least one number has three digits."""
    a, b = rng.randint(100, 999), rng.randint(*rng.choice([(100, 999), (100, 999), (100, 999), (10, 99), (1, 9)]))
    if rng.random() < 0.5:
        a, b = b, a
    chinese = is_chinese(rng)
    question = one_of(rng, CHINESE_ADDITIONS if chinese else ADDITIONS).format(a=a, b=b)
    return Turn(question, sum_answer(a, b, chinese), sum_key(a, b))


def subtraction(rng):
    a, b = rng.randrange(100), rng.randrange(100)
    if a < b and rng.random() < 0.8:
        a, b = b, a
    if is_chinese(rng):
        return Turn(one_of(rng, CHINESE_SUBTRACTIONS).format(a=a, b=b), f"{a} - {b} = {a - b}。", difference_key(a, b))
    return Turn(one_of(rng, SUBTRACTIONS).format(a=a, b=b), f"{a} - {b} = {a - b}.", difference_key(a, b))


def comparison(rng):
    a, b = rng.sample(range(100 if rng.random() < 0.8 else 1000), 2)
    small, large = sorted((a, b))
    a_is = "larger" if a > b else "smaller"
    if is_chinese(rng):
        forms = [(f"{a}和{b}哪个大?", f"{large}比{small}大。"), (f"{a}和{b}哪个小?", f"{small}比{large}小。"),
                 (f"{a}比{b}大吗?", f"{'是的' if a > b else '不'},{a}比{b}{'大' if a > b else '小'}。")]
    else:
        forms = [(f"Which is larger, {a} or {b}?", f"{large} is larger than {small}."),
                 (f"Which is smaller, {a} or {b}?", f"{small} is smaller than {large}."),
                 (f"Is {a} larger than {b}?", f"{'Yes' if a > b else 'No'}, {a} is {a_is} than {b}."),
                 (f"Is {a} smaller than {b}?", f"{'Yes' if a < b else 'No'}, {a} is {a_is} than {b}."),
                 (f"Which number is larger: {a} or {b}?", f"{large} is larger than {small}.")]
    return Turn(*rng.choice(forms), f"{small}<{large}")


def sorting(rng):
    numbers = [rng.randrange(100) for _ in range(rng.randint(3, 6))]
    shown = " ".join(map(str, numbers))
    question = one_of(rng, ["Sort these numbers: {}", "Sort these numbers: {}.", "Put these numbers in order: {}",
                            "把这些数从小到大排列: {}"])
    return Turn(question.format(shown), " ".join(map(str, sorted(numbers))), shown)


def counting(rng):
    first = rng.randint(0, 12) if rng.random() < 0.6 else rng.randint(0, 85)
    last = first + rng.randint(3, 10)
    up, down = range(first, last + 1), range(last, first - 1, -1)
    if is_chinese(rng):
        return Turn(f"从{first}数到{last}。", "、".join(map(str, up)) + "。", f"count {first} {last}")
    question, numbers = rng.choice([
        (f"Count from {first} to {last}.", up), (f"Count up from {first} to {last}.", up),
        (f"Count from {last} down to {first}.", down), (f"Count backwards from {last} to {first}.", down)])
    return Turn(question, ", ".join(map(str, numbers)) + ".", f"count {first} {last}")


def next_number(rng):
    number, after = rng.randint(1, 200), rng.random() < 0.5
    other = number + 1 if after else number - 1
    if is_chinese(rng):
        word = "后面" if after else "前面"
        return Turn(f"{number}{word}是几?", f"{number}{word}是{other}。", f"next to {number}")
    word = "after" if after else "before"
    return Turn(rng.choice(["Which number comes {} {}?", "What number comes {} {}?"]).format(word, number),
                f"{other} comes {word} {number}.", f"next to {number}")
