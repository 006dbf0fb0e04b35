"""Stories of a few sentences, in English and Chinese, made of templates with slots, and how people ask for them."""
import re
from typing import NamedTuple


class Character(NamedTuple):
    a: str  # at its first mention
    the: str
    he: str = "it"
    him: str = "it"
    his: str = "its"


GIRLS = "Mia Nora Ida Zoe Ada Anna Emma Lily Lucy Ella Rosa Eva".split()
BOYS = "Sam Tom Leo Ben Max Jack Noah Paul Finn Hugo Otto Carl".split()
NAMES = BOYS + GIRLS
ANIMALS = "cat dog bird rabbit bear fox mouse duck frog sheep horse pig owl lion goat hen".split()
THINGS = ("ball coin kite book drum lamp boat shell leaf cake hat key bell box stone map flower spoon apple umbrella "
          "orange").split()
PLACES = "forest house park river beach market garden school lake hill barn bridge".split()
COLOURS = "red blue green yellow white black brown pink purple grey".split()
SIZES = "little small big young old brave happy clever".split()

STORIES = [
    "Once upon a time, {hero.a} found {thing.a} at the {place}. {hero.the} took {thing.the} to the {other} and showed "
    "it to {friend.a}. They played with {thing.the} until the sun went down. Then {hero.the} went home and slept well.",
    "One {weather} morning, {hero.a} lost {thing.a}. {hero.the} looked at the {place} and at the {other}, but "
    "{thing.the} was not there. Then {friend.a} came and said: \"Is this yours?\" {hero.the} was very happy and said "
    "thank you.",
    "There was once {hero.a} who was afraid of the dark. {friend.a} brought {thing.a} and said: \"Hold it when you are "
    "afraid.\" That night {hero.the} held {thing.the}, looked at the stars, and was not afraid any more.",
    "{hero.a} wanted to go to the {place}. The way was long, and it began to rain. Then {friend.a} came by with "
    "{thing.a} and said: \"Come with me.\" So they went together, and the way was short.",
    "{hero.a} had {thing.a}, and {friend.a} had nothing to play with. \"We can share it,\" said {hero.the}. So they "
    "shared {thing.the} all day at the {place}, and both were happy.",
    "One {weather} day, {hero.a} planted a seed near the {place} and put {thing.a} beside it. {hero.the} gave it water "
    "every day. After seven days there was a {colour} flower. {hero.the} gave it to {friend.a}, and both smiled.",
    "{hero.a} and {friend.a} ran a race to the {place}. {hero.the} was fast, but stopped to look at {thing.a}. "
    "{friend.the} was slow, but did not stop, and won. \"I will not stop again,\" said {hero.the}, and both laughed.",
    "It was the birthday of {hero.a}. {friend.a} came with a {colour} bag, and in the bag was {thing.a}. \"It is just "
    "what I wanted!\" said {hero.the}. They ate cake and danced at the {place}.",
    "A long time ago, {hero.a} lived near the {place}. One night there was a knock at the door. It was {friend.a}, "
    "cold and hungry. {hero.the} made some soup. In the morning {friend.the} gave {hero.him} {thing.a} and said: "
    "\"You are a good friend.\"",
    "{hero.a} made {thing.a} out of {colour} paper. It was not very good, so {hero.he} made it again, and again. The "
    "third one was the best of all. {hero.the} showed it to {friend.a} at the {place}. \"Never give up,\" said "
    "{friend.the}.",
]
REQUESTS = [
    "Tell me a short story about {topic}.", "Tell me a story about {topic}.", "Write a short story about {topic}.",
    "Can you tell me a story about {topic}?", "I want to hear a story about {topic}.", "A story about {topic}, please.",
]

CHINESE_NAMES = "小明 小红 小华 小丽 小强 小芳 小龙 小雨 小天 小月".split()
CHINESE_ANIMALS = "猫 狗 鸟 兔 熊 狐狸 老鼠 鸭 羊 猴 象 鹿".split()
CHINESE_THINGS = [  # with its measure word
    ("球", "一个"), ("书", "一本"), ("风筝", "一只"), ("灯", "一盏"), ("贝壳", "一个"), ("叶子", "一片"), ("蛋糕", "一块"),
    ("帽子", "一顶"), ("钥匙", "一把"), ("石头", "一块"), ("苹果", "一个"), ("伞", "一把"), ("花", "一朵"), ("鼓", "一面")]
CHINESE_PLACES = "森林 公园 河边 海边 市场 花园 学校 湖边 山上 桥上".split()
CHINESE_STORIES = [
    "从前,{hero.a}在{place}找到了{thing.a}。{hero.the}带着{thing.the}去{other},给{friend.a}看。"
    "他们一起玩到太阳下山。然后{hero.the}回家睡觉了。",
    "一天早上,{hero.a}丢了{thing.a}。{hero.the}去{place}找,又去{other}找,都没有找到。"
    "后来{friend.a}来了,说:“这是你的吗?”{hero.the}很高兴,说:“谢谢你!”",
    "{hero.a}有{thing.a},{friend.a}什么都没有。{hero.the}说:“我们一起玩吧。”于是他们在{place}玩了一整天,两个都很开心。",
    "{hero.a}想去{place},可是路很远,天又下雨了。这时{friend.a}拿着{thing.a}走过来,说:“跟我走吧。”"
    "他们一起走,路就不远了。",
    "今天是{hero.a}的生日。{friend.a}送来{thing.a}。{hero.the}说:“这正是我想要的!”他们在{place}唱歌跳舞,非常快乐。",
]
CHINESE_REQUESTS = ["讲一个关于{topic}的故事。", "给我讲一个{topic}的故事。", "请讲一个关于{topic}的小故事。", "我想听{topic}的故事。"]


def with_article(noun):
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def english_character(rng):
    if rng.random() < 0.4:
        name = rng.choice(NAMES)
        return Character(name, name, *(("she", "her", "her") if name in GIRLS else ("he", "him", "his")))
    animal = rng.choice(ANIMALS)
    size = rng.choice(SIZES) + " " if rng.random() < 0.5 else ""
    return Character(with_article(size + animal), "the " + animal)


def english_thing(rng):
    thing = rng.choice(THINGS)
    colour = rng.choice(COLOURS) + " " if rng.random() < 0.3 else ""
    return Character(with_article(colour + thing), "the " + thing)


def capitalised(story):
    """With a capital letter at the start of each sentence."""
    return re.sub(r'(^|[.!?]"? )([a-z])', lambda start: start[1] + start[2].upper(), story)


def english_story(rng):
    """(what is asked for, the story)"""
    hero, friend, thing = english_character(rng), english_character(rng), english_thing(rng)
    while friend.the == hero.the:
        friend = english_character(rng)
    place, other = rng.sample(PLACES, 2)
    story = capitalised(rng.choice(STORIES).format(
        hero=hero, friend=friend, thing=thing, place=place, other=other, colour=rng.choice(COLOURS),
        weather=rng.choice(["sunny", "rainy", "windy", "cold", "warm"])))
    topic = f"{hero.a} and {thing.a}" if rng.random() < 0.4 else hero.a
    return rng.choice(REQUESTS).format(topic=topic), story


def chinese_character(rng):
    if rng.random() < 0.4:
        name = rng.choice(CHINESE_NAMES)
        return Character(name, name)
    animal = rng.choice(CHINESE_ANIMALS)
    small = animal if animal == "老鼠" else "小" + animal
    return Character("一只" + small, small)


def chinese_story(rng):
    """(what is asked for, the story)"""
    hero, friend = chinese_character(rng), chinese_character(rng)
    while friend.the == hero.the:
        friend = chinese_character(rng)
    thing, measure = rng.choice(CHINESE_THINGS)
    place, other = rng.sample(CHINESE_PLACES, 2)
    story = rng.choice(CHINESE_STORIES).format(hero=hero, friend=friend, thing=Character(measure + thing, thing),
                                               place=place, other=other)
    topic = f"{hero.the}和{thing}" if rng.random() < 0.3 else hero.the
    return rng.choice(CHINESE_REQUESTS).format(topic=topic), story
