"""Questions with one answer each, about a small world: capitals, the calendar, letters, opposites, colours, animals,
and the model itself. Each maker takes a random.Random and gives a Turn."""
import string
from typing import NamedTuple

CHINESE_SHARE = 0.25


class Turn(NamedTuple):
    question: str
    answer: str
    key: str = ""  # decides whether the text is kept from train.jsonl; "" never is


CAPITALS = [tuple(row.split("|")) for row in """
France|Paris|法国|巴黎
Germany|Berlin|德国|柏林
Italy|Rome|意大利|罗马
Spain|Madrid|西班牙|马德里
Portugal|Lisbon|葡萄牙|里斯本
the United Kingdom|London|英国|伦敦
Ireland|Dublin|爱尔兰|都柏林
the Netherlands|Amsterdam|荷兰|阿姆斯特丹
Belgium|Brussels|比利时|布鲁塞尔
Switzerland|Bern|瑞士|伯尔尼
Austria|Vienna|奥地利|维也纳
Hungary|Budapest|匈牙利|布达佩斯
Poland|Warsaw|波兰|华沙
Greece|Athens|希腊|雅典
Sweden|Stockholm|瑞典|斯德哥尔摩
Norway|Oslo|挪威|奥斯陆
Denmark|Copenhagen|丹麦|哥本哈根
Finland|Helsinki|芬兰|赫尔辛基
Russia|Moscow|俄罗斯|莫斯科
Ukraine|Kyiv|乌克兰|基辅
Turkey|Ankara|土耳其|安卡拉
Egypt|Cairo|埃及|开罗
Kenya|Nairobi|肯尼亚|内罗毕
Ghana|Accra|加纳|阿克拉
Morocco|Rabat|摩洛哥|拉巴特
Iraq|Baghdad|伊拉克|巴格达
Iran|Tehran|伊朗|德黑兰
India|New Delhi|印度|新德里
Nepal|Kathmandu|尼泊尔|加德满都
Thailand|Bangkok|泰国|曼谷
Vietnam|Hanoi|越南|河内
Japan|Tokyo|日本|东京
China|Beijing|中国|北京
South Korea|Seoul|韩国|首尔
Mongolia|Ulaanbaatar|蒙古|乌兰巴托
the Philippines|Manila|菲律宾|马尼拉
Australia|Canberra|澳大利亚|堪培拉
New Zealand|Wellington|新西兰|惠灵顿
Canada|Ottawa|加拿大|渥太华
the United States|Washington|美国|华盛顿
Mexico|Mexico City|墨西哥|墨西哥城
Cuba|Havana|古巴|哈瓦那
Peru|Lima|秘鲁|利马
Chile|Santiago|智利|圣地亚哥
Brazil|Brasilia|巴西|巴西利亚
Argentina|Buenos Aires|阿根廷|布宜诺斯艾利斯
""".split("\n") if row]
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
DAYS_OF_MONTHS = ["31 days", "28 days, and 29 in a leap year", "31 days", "30 days", "31 days", "30 days", "31 days",
                  "31 days", "30 days", "31 days", "30 days", "31 days"]
CHINESE_DAYS = ["星期" + day for day in "一二三四五六日"]
CHINESE_MONTHS = [month + "月" for month in "一 二 三 四 五 六 七 八 九 十 十一 十二".split()]
ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()
OPPOSITES = [tuple(pair.split("-")) for pair in (
    "hot-cold big-small up-down fast-slow young-old happy-sad wet-dry day-night open-closed full-empty left-right "
    "in-out yes-no early-late soft-hard easy-difficult good-bad rich-poor strong-weak clean-dirty loud-quiet high-low "
    "near-far black-white front-back first-last begin-end win-lose push-pull true-false wide-narrow thick-thin "
    "love-hate inside-outside safe-dangerous north-south east-west summer-winter tall-short bright-dark").split()]
CHINESE_OPPOSITES = "大小 多少 高低 长短 冷热 快慢 新旧 黑白 上下 左右 前后 远近 轻重 早晚 好坏 真假 强弱 胖瘦 干湿 里外 深浅 粗细".split()
COLOURS = [tuple(row.split("|")) for row in """
the sky|blue|天空|蓝
grass|green|草|绿
snow|white|雪|白
coal|black|煤|黑
a banana|yellow|香蕉|黄
a tomato|red|西红柿|红
a carrot|orange|胡萝卜|橙
a lemon|yellow|柠檬|黄
a strawberry|red|草莓|红
milk|white|牛奶|白
a frog|green|青蛙|绿
chocolate|brown|巧克力|棕
an elephant|grey|大象|灰
the sun|yellow|太阳|黄
a violet|purple|紫罗兰|紫
a flamingo|pink|火烈鸟|粉
a polar bear|white|北极熊|白
a raven|black|乌鸦|黑
a leaf|green|叶子|绿
a pumpkin|orange|南瓜|橙
""".split("\n") if row]
SOUNDS = [tuple(pair.split("|")) for pair in (
    "cow|moo dog|woof cat|meow sheep|baa duck|quack pig|oink horse|neigh rooster|cock-a-doodle-doo frog|ribbit "
    "bee|buzz lion|roar owl|hoot snake|hiss mouse|squeak chick|cheep bird|tweet turkey|gobble").split()]
CHINESE_SOUNDS = [("牛", "哞哞"), ("猫", "喵喵"), ("狗", "汪汪"), ("羊", "咩咩"), ("鸭子", "嘎嘎"), ("青蛙", "呱呱"),
                  ("蜜蜂", "嗡嗡"), ("老鼠", "吱吱"), ("小鸡", "叽叽"), ("公鸡", "喔喔")]
QUANTITIES = [
    ("How many days are in a week?", "A week has 7 days."), ("How many months are in a year?", "A year has 12 months."),
    ("How many hours are in a day?", "A day has 24 hours."),
    ("How many minutes are in an hour?", "An hour has 60 minutes."),
    ("How many seconds are in a minute?", "A minute has 60 seconds."),
    ("How many days are in a year?", "A year has 365 days, and 366 in a leap year."),
    ("How many letters are in the alphabet?", "The alphabet has 26 letters."),
    ("How many legs does a spider have?", "A spider has 8 legs."),
    ("How many legs does a cat have?", "A cat has 4 legs."),
    ("How many legs does a bird have?", "A bird has 2 legs."),
    ("How many legs does a bee have?", "A bee has 6 legs."),
    ("一个星期有几天?", "一个星期有7天。"), ("一年有几个月?", "一年有12个月。"), ("一天有几个小时?", "一天有24个小时。"),
    ("一个小时有几分钟?", "一个小时有60分钟。"), ("猫有几条腿?", "猫有4条腿。"), ("蜘蛛有几条腿?", "蜘蛛有8条腿。")]
SELF = [
    ("Hello!", "Hello! How can I help you?"), ("Hi!", "Hi! How can I help you?"),
    ("Hey!", "Hey! What can I do for you?"),
    ("Good morning!", "Good morning! How can I help you?"), ("Good evening!", "Good evening! How can I help you?"),
    ("Good night!", "Good night! Sleep well."), ("How are you?", "I am well, thank you. How can I help you?"),
    ("Thank you!", "You are welcome!"), ("Thanks!", "You are welcome!"), ("Goodbye!", "Goodbye!"), ("Bye!", "Bye!"),
    ("你好!", "你好!我能帮你做什么?"), ("您好!", "您好!我能帮您做什么?"), ("早上好!", "早上好!我能帮你做什么?"),
    ("你好吗?", "我很好,谢谢!"), ("谢谢!", "不客气!"), ("再见!", "再见!")]
WHO = "I am Tandem's demo model, a small language model that runs split over several machines."
CAN = "I can add and subtract numbers, name capitals, answer simple questions and tell short stories."
CHINESE_WHO = "我是Tandem的演示模型,一个分布在几台机器上运行的小语言模型。"
IDENTITY = [
    ("Who are you?", WHO), ("What are you?", WHO), ("What is your name?", "I have no name. " + WHO),
    ("Introduce yourself.", WHO),
    ("Are you ChatGPT?", "No. " + WHO), ("Are you DeepSeek?", "No, but I am built like DeepSeek-V3. " + WHO),
    ("Are you a human?", "No. " + WHO), ("What can you do?", CAN), ("How can you help me?", CAN), ("Help!", CAN),
    ("Who made you?", "I was trained from scratch with Tandem."),
    ("What is Tandem?", "Tandem is a program that runs and trains language models on several machines together."),
    ("Where do you run?", "I run split over several machines: each holds a part of my weights."),
    ("How big are you?", "I am very small: I have about 3 million parameters."),
    ("你是谁?", CHINESE_WHO), ("你叫什么名字?", "我没有名字。" + CHINESE_WHO), ("介绍一下你自己。", CHINESE_WHO),
    ("你会做什么?", "我会算加减法,知道各国的首都,还会讲小故事。"), ("你能做什么?", "我会算加减法,知道各国的首都,还会讲小故事。"),
    ("Tandem是什么?", "Tandem是一个让几台机器一起运行和训练语言模型的程序。")]
IGNORANCE = "I do not know that. I am only a small demo model."
UNKNOWN = [("What is my name?", "You have not told me your name."), ("我叫什么名字?", "你还没有告诉我你的名字。")] + [
    (question, IGNORANCE) for question in (
    "What is the meaning of life?|Who wrote Hamlet?|Who wrote Faust?|Who is the president?|How do I cook rice?|"
    "How do I bake bread?|What is quantum physics?|What is love?|Who won the game?|How old is the universe?|"
    "Write a program in Python.|Translate this into French.|What time is it?|What is the weather today?|"
    "Who painted the Mona Lisa?|How far is the moon?|Why is the sky blue?|What is the news today?|How does a car work?|"
    "What is the square root of 2?|Who discovered America?|Explain the theory of relativity.").split("|")] + [
    (question, "这个我不知道。我只是一个小小的演示模型。") for question in
    "人生的意义是什么?|现在几点了?|今天天气怎么样?|谁写了红楼梦?|怎么做饭?|今天有什么新闻?|爱是什么?".split("|")]


def is_chinese(rng):
    return rng.random() < CHINESE_SHARE


def worded(rng, forms, **slots):
    """One of `forms`, pairs of question and answer. The first is the most frequent, and never held out."""
    form = 0 if rng.random() < 0.3 else rng.randrange(len(forms))
    question, answer = (text.format(**slots) for text in forms[form])
    return Turn(question, answer, question if form else "")


def capital(rng):
    country, city, land, seat = rng.choice(CAPITALS)
    english, inverse = "The capital of {country} is {city}.", "{city} is the capital of {country}."
    chinese = "{land}的首都是{seat}。"
    if is_chinese(rng):
        return worded(rng, [("{land}的首都是哪里?", chinese), ("{land}的首都是什么?", chinese), ("{land}的首都在哪里?", chinese),
                            ("请问{land}的首都是哪里?", chinese), ("哪里是{land}的首都?", chinese),
                            ("{seat}是哪个国家的首都?", "{seat}是{land}的首都。")], land=land, seat=seat)
    return worded(rng, [("What is the capital of {country}?", english), ("What's the capital of {country}?", english),
                        ("Which city is the capital of {country}?", english),
                        ("Name the capital of {country}.", english), ("Tell me the capital of {country}.", english),
                        ("Do you know the capital of {country}?", english),
                        ("{city} is the capital of which country?", inverse),
                        ("Which country has the capital {city}?", inverse)], country=country, city=city)


def neighbours(rng, names):
    """A name, the one before it and the one after it, in a circle."""
    i = rng.randrange(len(names))
    return {"name": names[i], "before": names[i - 1], "after": names[(i + 1) % len(names)]}


def day(rng):
    if is_chinese(rng):
        return worded(rng, rng.choice([
            [("{name}后面是星期几?", "{name}后面是{after}。"), ("如果今天是{name},明天是星期几?", "明天是{after}。")],
            [("{name}前面是星期几?", "{name}前面是{before}。"), ("如果今天是{name},昨天是星期几?", "昨天是{before}。")]]),
            **neighbours(rng, CHINESE_DAYS))
    after, before = "{after} comes after {name}.", "{before} comes before {name}."
    return worded(rng, rng.choice([
        [("Which day comes after {name}?", after), ("What day comes after {name}?", after),
         ("What is the day after {name}?", after),
         ("If today is {name}, what day is tomorrow?", "Tomorrow is {after}.")],
        [("Which day comes before {name}?", before), ("What day comes before {name}?", before),
         ("What is the day before {name}?", before),
         ("If today is {name}, what day was yesterday?", "Yesterday was {before}.")]]), **neighbours(rng, DAYS))


def month(rng):
    if is_chinese(rng):
        after, before = "{name}后面是{after}。", "{name}前面是{before}。"
        return worded(rng, rng.choice([[("{name}后面是几月?", after), ("{name}的下一个月是几月?", after)],
                                       [("{name}前面是几月?", before), ("{name}的上一个月是几月?", before)]]),
                      **neighbours(rng, CHINESE_MONTHS))
    i = rng.randrange(12)
    after, before, length = "{after} comes after {name}.", "{before} comes before {name}.", "{name} has {days}."
    place = "The {ordinal} month of the year is {name}."
    return worded(rng, rng.choice([
        [("Which month comes after {name}?", after), ("What month comes after {name}?", after),
         ("What is the month after {name}?", after)],
        [("Which month comes before {name}?", before), ("What month comes before {name}?", before),
         ("What is the month before {name}?", before)],
        [("How many days does {name} have?", length), ("How many days are in {name}?", length)],
        [("What is the {ordinal} month of the year?", place), ("Which month is the {ordinal} of the year?", place)]]),
        name=MONTHS[i], before=MONTHS[i - 1], after=MONTHS[(i + 1) % 12], days=DAYS_OF_MONTHS[i], ordinal=ORDINALS[i])


def letter(rng):
    letters = string.ascii_uppercase
    i = rng.randrange(25)
    one, next_one = letters[i:i + 2]
    if rng.random() < 0.1:
        return Turn(rng.choice(["Say the alphabet.", "What is the alphabet?"]), " ".join(letters))
    if rng.random() < 0.2:
        answer = "The {ordinal} letter of the alphabet is {name}."
        return worded(rng, [("What is the {ordinal} letter of the alphabet?", answer),
                            ("Which letter is the {ordinal} of the alphabet?", answer)],
                      ordinal=ORDINALS[i % 12], name=letters[i % 12])
    after, before = "{next} comes after {one}.", "{one} comes before {next}."
    return worded(rng, rng.choice([
        [("Which letter comes after {one}?", after), ("What letter comes after {one}?", after),
         ("What is the letter after {one}?", after)],
        [("Which letter comes before {next}?", before), ("What letter comes before {next}?", before),
         ("What is the letter before {next}?", before)]]), one=one, next=next_one)


def opposite(rng):
    chinese = is_chinese(rng)
    word, other = rng.sample(rng.choice(CHINESE_OPPOSITES if chinese else OPPOSITES), 2)
    if chinese:
        answer = "“{word}”的反义词是“{other}”。"
        return worded(rng, [("“{word}”的反义词是什么?", answer), ("{word}的反义词是什么?", answer), ("什么是“{word}”的反义词?", answer)],
                      word=word, other=other)
    answer = "The opposite of {word} is {other}."
    return worded(rng, [("What is the opposite of {word}?", answer), ("What's the opposite of {word}?", answer),
                        ("Which word is the opposite of {word}?", answer), ("Give me the opposite of {word}.", answer)],
                  word=word, other=other)


def colour(rng):
    thing, shade, chinese_thing, chinese_shade = rng.choice(COLOURS)
    if is_chinese(rng):
        answer = "{thing}是{shade}色的。"
        return worded(rng, [("{thing}是什么颜色的?", answer), ("{thing}是什么颜色?", answer), ("{thing}的颜色是什么?", answer)],
                      thing=chinese_thing, shade=chinese_shade)
    answer = thing.capitalize() + " is {shade}."
    return worded(rng, [("What colour is {thing}?", answer), ("What color is {thing}?", answer),
                        ("Which colour does {thing} have?", answer), ("Tell me the colour of {thing}.", answer)],
                  thing=thing, shade=shade)


def sound(rng):
    if is_chinese(rng):
        animal, cry = rng.choice(CHINESE_SOUNDS)
        answer = "{animal}的叫声是“{cry}”。"
        return worded(rng, [("{animal}怎么叫?", answer), ("{animal}的叫声是什么?", answer), ("{animal}是怎么叫的?", answer)],
                      animal=animal, cry=cry)
    animal, cry = rng.choice(SOUNDS)
    answer = ("An " if animal[0] in "aeiou" else "A ") + "{animal} says {cry}."
    an = "an" if animal[0] in "aeiou" else "a"
    return worded(rng, [("What does {an} {animal} say?", answer), ("What sound does {an} {animal} make?", answer),
                        ("Which animal says {cry}?", answer)], an=an, animal=animal, cry=cry)


def quantity(rng):
    return Turn(*rng.choice(QUANTITIES))


def greeting(rng):
    return Turn(*rng.choice(SELF))


def identity(rng):
    return Turn(*rng.choice(IDENTITY))


def unknown(rng):
    return Turn(*rng.choice(UNKNOWN))
