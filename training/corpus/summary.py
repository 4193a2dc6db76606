"""Summaries (one sentence that says who did what and where) and questions about a passage."""

from __future__ import annotations

from dataclasses import dataclass

from training import vocabulary as words
from training.dialogue import Dialogue, Turn, ask
from training.draw import Draw, fix_articles, with_article

# Main event; it is what a summary has to keep.
_EVENTS = (
    "opened a new {shop}",
    "closed the old {shop}",
    "won a prize for {hobby}",
    "found a lost {thing}",
    "bought a {color} {thing}",
    "lost a {color} {thing}",
    "sold an old {thing}",
    "repaired the old bridge",
    "saved a {animal}",
    "planted a hundred trees",
    "wrote a book about {topic}",
    "built a {thing} out of wood",
    "started a club for {hobby}",
    "gave a talk about {topic}",
    "painted the school {color}",
    "founded a museum of {topic}",
    "taught children about {topic}",
    "organized a festival of {hobby}",
    "broke the record in {hobby}",
    "moved into a {color} house",
)
_SHOPS = ("bakery", "bookshop", "cafe", "restaurant", "school", "library", "hotel", "cinema", "market", "pharmacy")
_LEAD = (
    "On {day}, {name} {event} in {city}.",
    "{name}, {job}, {event} in {city} on {day}.",
    "Last {day} {name} {event} in {city}.",
    "In {city}, {name} {event} on {day}.",
    "{name} {event} in {city} last {day}.",
    "People in {city} were surprised on {day} when {name} {event}.",
)
_DETAIL = (
    "Many people came to see it.",
    "It took {n} weeks of hard work.",
    "The weather was cold and rainy.",
    "The mayor thanked everyone who helped.",
    "\"I am very happy,\" said {name}.",
    "More than {n} people were there.",
    "It all began {n} years ago with a small idea.",
    "The local newspaper wrote a long article about it.",
    "Some neighbors complained about the noise.",
    "Friends and family helped every weekend.",
    "It cost about {n} dollars.",
    "Nobody had expected it.",
    "There was music and free coffee.",
    "The next step is already planned for {month}.",
    "Children from three schools came along.",
    "\"It was not easy,\" {name} said with a smile.",
    "The whole town talked about it for days.",
    "A friend called {friend} took many photos.",
)  # fmt: skip
_ASK = (
    "Summarize this text: {p}",
    "Summarize: {p}",
    "Summarize in one sentence: {p}",
    "Summarise this: {p}",
    "Give me a summary of this text: {p}",
    "Write a short summary: {p}",
    "Write a one sentence summary of this: {p}",
    "{p}\nSummarize this.",
    "{p} Give a short summary.",
    "What is this text about? {p}",
    "Tell me in one sentence what happened: {p}",
    "TL;DR: {p}",
    "{p}\nTL;DR",
    "Make this shorter: {p}",
    "Shorten this text: {p}",
    "What is the main point of this text? {p}",
    "Summarize the following paragraph.\n{p}",
)


_TWO_ASK = (
    "Summarize in two sentences: {p}",
    "Summarize this text in two sentences: {p}",
    "Write a two sentence summary: {p}",
    "{p}\nSummarize this in two sentences.",
    "Give me a summary of two sentences: {p}",
    "Tell me in two sentences what happened: {p}",
    "Shorten this to two sentences: {p}",
    "{p} Sum this up in two sentences.",
)


@dataclass(frozen=True)
class News:
    """A short news item, the facts in it, and the first sentence beside its main one."""

    text: str
    detail: str
    name: str
    city: str
    day: str
    event: str


def _news_item(draw: Draw) -> News:
    name, friend = draw.people(2)
    city, day = draw.place(), draw.choice(words.DAYS)
    event = draw.choice(_EVENTS).format(
        shop=draw.choice(_SHOPS),
        hobby=draw.choice(words.HOBBIES),
        thing=draw.choice(words.THINGS),
        color=draw.choice(words.COLOURS),
        animal=draw.choice(words.ANIMALS),
        topic=draw.choice(words.TOPICS),
    )
    lead = draw.say(_LEAD, name=name, city=city, day=day, event=event, job=with_article(draw.choice(words.JOBS)))
    details = draw.sample(_DETAIL, draw.number(1, 4))
    fields = {"name": name, "friend": friend, "month": draw.choice(words.MONTHS)}
    body = [detail.format(n=draw.number(2, 99), **fields) for detail in details]
    text = [*body[:1], lead, *body[1:]] if draw.chance(0.15) else [lead, *body]
    return News(fix_articles(" ".join(text)), body[0], name, city, day, fix_articles(event))


_DOINGS = (
    *("lost a {thing}", "lost his {thing}", "lost her {thing}", "found a {thing}", "bought a {color} {thing}"),
    *("saw a {animal}", "met {friend}", "helped {friend}", "sang a song", "read a book about {topic}"),
    *("fed a {animal}", "broke a {thing}", "painted a picture of a {animal}", "forgot the {thing}", "ate {food}"),
    *("talked about {topic}", "waited for {friend}", "cleaned the {thing}", "had a lesson in {hobby}"),
)
_SPOTS = (
    *("in the park", "at the station", "at school", "on the beach", "in the garden", "in the kitchen", "at home"),
    *("at the market", "in {city}", "near the river", "in the library", "on the bus", "in the street", "at the lake"),
)
_BEFORE = ("", "", "", "Yesterday ", "On {day}, ", "This morning ", "Last week ", "Last {day} ")
_AFTER = (
    *("A girl found it.", "A boy laughed.", "She gave it back to him.", "He gave it back to her.", "She was tired."),
    *(
        "He was very happy.",
        "{friend} helped a lot.",
        "It started to rain.",
        "Then they went home.",
        "She thanked him.",
    ),
    *("Nobody else was there.", "They had a lot of fun.", "A dog ran away.", "Later they ate {food}.", "Time flew."),
    *(
        "An old man smiled.",
        "The others were surprised.",
        "{friend} came later.",
        "It was not easy.",
        "It took an hour.",
    ),
)


def _everyday(draw: Draw) -> tuple[str, str]:
    """Return two to four short sentences about what somebody did, and the sentence that says so."""
    name, friend = draw.people(2)
    fields = {
        "friend": friend,
        "thing": draw.choice(words.THINGS),
        "color": draw.choice(words.COLOURS),
        "animal": draw.choice(words.ANIMALS),
        "topic": draw.choice(words.TOPICS),
        "city": draw.place(),
        "food": draw.choice(words.FOODS),
        "hobby": draw.choice(words.HOBBIES),
        "day": draw.choice(words.DAYS),
    }
    done = f"{name} {draw.say(_DOINGS, **fields)} {draw.say(_SPOTS, **fields)}."
    before = draw.say(_BEFORE, **fields)
    after = [sentence.format(**fields) for sentence in draw.sample(_AFTER, draw.number(1, 3))]
    return fix_articles(" ".join([before + done, *after])), fix_articles(done)


def make(draw: Draw) -> Dialogue:
    """Summarize a news item, or a few sentences about what somebody did, in one sentence."""
    if draw.chance(0.4):
        text, done = _everyday(draw)
        return ask("summary", draw.phrase(_ASK, p=text), done)
    item = _news_item(draw)
    return ask("summary", draw.phrase(_ASK, p=item.text), f"{item.name} {item.event} in {item.city}.")


def two_sentences(draw: Draw) -> Dialogue:
    """Summarize a news item in two sentences: what happened, and the first detail of the text."""
    item = _news_item(draw)
    summary = f"{item.name} {item.event} in {item.city}. {item.detail}"
    return ask("summary_two", draw.phrase(_TWO_ASK, p=item.text), summary)


_WHO = ("Who is this about?", "Who did it?", "What is the name of the person?", "Who is the text about?")
_WHERE = ("Where did it happen?", "In which city was it?", "Where was {name}?", "What city is it about?",
          "Where did that happen?", "Which town is mentioned?")  # fmt: skip
_WHEN = (
    "When did it happen?",
    "On which day was it?",
    "What day was it?",
    "When was that?",
    "On what day did it happen?",
)
_WHAT = ("What did {name} do?", "What happened?", "What has {name} done?", "Tell me what {name} did.")


_LAYOUTS = (
    *("{p} {q}", "{p}\n{q}", "{q} {p}", "{q}\n{p}", "Read this: {p} {q}", "Text: {p}\nQuestion: {q}"),
    *("Answer the question about the text.\n{p}\n{q}", "Context: {p}\nQuestion: {q}"),
)


def questions(draw: Draw) -> Dialogue:
    """Return one to three questions about a news item; the later ones refer back to it."""
    item = _news_item(draw)
    kinds = (
        (_WHO, f"It is about {item.name}."),
        (_WHERE, f"It happened in {item.city}."),
        (_WHEN, f"It happened on {item.day}."),
        (_WHAT, f"{item.name} {item.event}."),
    )
    turns: list[Turn] = []
    for prompts, answer in draw.sample(kinds, draw.number(1, 3)):
        question = draw.phrase(prompts, name=item.name)
        if not turns:
            layout = draw.choice(_LAYOUTS)
            question = layout.format(p=item.text, q=question)
        turns += [Turn("user", question), Turn("assistant", answer)]
    return Dialogue("reading", tuple(turns))


_RELATIONS = (
    ("{n} lives in {v}.", ("Where does {n} live?", "In which city does {n} live?", "Which city is {n} from?"),
     "{n} lives in {v}."),
    ("{n} works as {v}.", ("What is the job of {n}?", "What does {n} do for work?", "What is {n}'s job?"),
     "{n} works as {v}."),
    ("{n} is {v} years old.", ("How old is {n}?", "What is the age of {n}?", "What is {n}'s age?"),
     "{n} is {v} years old."),
    ("{n} likes {v}.", ("What does {n} like?", "What is the hobby of {n}?", "What is {n}'s hobby?"), "{n} likes {v}."),
    ("{n} has a pet {v}.", ("What pet does {n} have?", "Which animal does {n} have?", "What is {n}'s pet?"),
     "{n} has a pet {v}."),
    ("{n} has {v} car.", ("What color is the car of {n}?", "Which car does {n} have?", "What car does {n} have?"),
     "{n} has {v} car."),
)  # fmt: skip


def people(draw: Draw) -> Dialogue:
    """Return a passage about two or three people and a question that only one sentence answers."""
    names = draw.people(draw.number(2, 3))
    facts = []
    for name in names:
        for relation in draw.sample(range(len(_RELATIONS)), draw.number(1, 2)):
            facts.append((name, relation, _relation_value(draw, relation)))
    draw.rng.shuffle(facts)
    passage = " ".join(_RELATIONS[r][0].format(n=name, v=value) for name, r, value in facts)
    name, relation, value = draw.choice(facts)
    _, prompts, answer = _RELATIONS[relation]
    question = draw.phrase(prompts, n=name)
    layout = draw.choice(_LAYOUTS)
    return ask("reading", layout.format(p=passage, q=question), answer.format(n=name, v=value))


def _relation_value(draw: Draw, relation: int) -> str:
    options = (draw.place(), with_article(draw.choice(words.JOBS)), str(draw.number(5, 95)), draw.choice(words.HOBBIES),
               draw.choice(words.PETS), with_article(draw.choice(words.COLOURS)))  # fmt: skip
    return options[relation]
