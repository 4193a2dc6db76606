"""Question answering from memory: capitals, everyday facts, definitions and opposites."""

from __future__ import annotations

from collections.abc import Callable

from training.dialogue import Dialogue, PlainText, ask
from training.draw import Draw, with_article


def _pairs(rows: str, separator: str) -> tuple[tuple[str, str], ...]:
    """Read "key:value" rows."""
    split = (row.split(":") for row in rows.split(separator))
    return tuple((key, value) for key, value in split)


_CAPITALS = (
    "France:Paris,Germany:Berlin,Spain:Madrid,Italy:Rome,Portugal:Lisbon,Austria:Vienna,Norway:Oslo,"
    "Ireland:Dublin,Greece:Athens,Poland:Warsaw,Sweden:Stockholm,Finland:Helsinki,Denmark:Copenhagen,"
    "Belgium:Brussels,Switzerland:Bern,the Netherlands:Amsterdam,England:London,the United Kingdom:London,"
    "Scotland:Edinburgh,Hungary:Budapest,the Czech Republic:Prague,Romania:Bucharest,Bulgaria:Sofia,"
    "Croatia:Zagreb,Serbia:Belgrade,Ukraine:Kyiv,Russia:Moscow,Turkey:Ankara,Egypt:Cairo,Morocco:Rabat,"
    "Kenya:Nairobi,Nigeria:Abuja,Ethiopia:Addis Ababa,Ghana:Accra,Tunisia:Tunis,Algeria:Algiers,India:New Delhi,"
    "China:Beijing,Japan:Tokyo,South Korea:Seoul,Thailand:Bangkok,Vietnam:Hanoi,Indonesia:Jakarta,"
    "the Philippines:Manila,Malaysia:Kuala Lumpur,Pakistan:Islamabad,Iran:Tehran,Iraq:Baghdad,Israel:Jerusalem,"
    "Saudi Arabia:Riyadh,Australia:Canberra,New Zealand:Wellington,Canada:Ottawa,the United States:Washington,"
    "the USA:Washington,Mexico:Mexico City,Cuba:Havana,Brazil:Brasilia,Argentina:Buenos Aires,Chile:Santiago,"
    "Peru:Lima,Colombia:Bogota,Venezuela:Caracas,Ecuador:Quito,Iceland:Reykjavik"
)
CAPITALS = _pairs(_CAPITALS, ",")
_CAPITAL_ASK = (
    "What is the capital of {c}?",
    "What's the capital of {c}?",
    "Capital of {c}?",
    "Which city is the capital of {c}?",
    "Tell me the capital of {c}.",
    "Name the capital of {c}.",
    "Do you know the capital of {c}?",
    "What is {c}'s capital?",
    "What is the capital city of {c}?",
    "The capital of {c} is",
    "capital {c}",
    "What city is the capital of {c}?",
)
_COUNTRY_ASK = (
    "{c} is the capital of which country?",
    "Which country has the capital {c}?",
    "Of which country is {c} the capital?",
    "What country is {c} the capital of?",
    "Which country is {c} the capital of?",
)

# Question wordings (separated by |) and the answer.
_FACTS: tuple[tuple[str, str], ...] = (
    ("How many days are in a week?|How many days does a week have?|Days in a week?", "A week has seven days."),
    ("How many months are in a year?|How many months does a year have?|Months in a year?", "A year has twelve months."),
    ("How many days are in a year?|How many days does a year have?", "A year has 365 days."),
    ("How many hours are in a day?|How many hours does a day have?", "A day has 24 hours."),
    ("How many minutes are in an hour?|How many minutes does an hour have?", "An hour has 60 minutes."),
    ("How many legs does a spider have?|Number of legs of a spider?", "A spider has eight legs."),
    ("How many legs does an insect have?|How many legs does an ant have?", "An insect has six legs."),
    ("How many legs does a dog have?|How many legs does a cat have?", "It has four legs."),
    ("What color is the sky?|What is the color of the sky?|Which color does the sky have?", "The sky is blue."),
    ("What color is grass?|What is the color of grass?", "Grass is green."),
    ("What color is snow?|What is the color of snow?", "Snow is white."),
    ("What color is a banana?|What is the color of a banana?", "A banana is yellow."),
    ("What do bees make?|What does a bee make?", "Bees make honey."),
    ("What do cows eat?|What does a cow eat?", "Cows eat grass."),
    ("What does a cow give us?|Where does milk come from?", "Milk comes from cows."),
    (
        "What is the largest ocean?|Which ocean is the biggest?|Name the largest ocean.",
        "The largest ocean is the Pacific.",
    ),
    ("What is the largest planet?|Which planet is the biggest?", "The largest planet is Jupiter."),
    (
        "What is the highest mountain?|Which mountain is the highest?|What is the tallest mountain in the world?",
        "The highest mountain is Mount Everest.",
    ),
    (
        "What is the longest river in Africa?|Which river in Africa is the longest?",
        "The longest river in Africa is the Nile.",
    ),
    (
        "What is the largest animal?|Which animal is the biggest?|What is the biggest animal in the world?",
        "The largest animal is the blue whale.",
    ),
    ("What is the fastest land animal?|Which animal runs fastest?", "The fastest land animal is the cheetah."),
    ("Which planet do we live on?|On which planet do we live?", "We live on the Earth."),
    (
        "How many planets are in the solar system?|How many planets are there?",
        "There are eight planets in the solar system.",
    ),
    ("What is the first month of the year?|Which month comes first?", "The first month of the year is January."),
    ("What is the last month of the year?|Which month comes last?", "The last month of the year is December."),
    ("What day comes after Monday?|Which day is after Monday?", "Tuesday comes after Monday."),
    ("What day comes after Friday?|Which day is after Friday?", "Saturday comes after Friday."),
    ("What day comes before Sunday?|Which day is before Sunday?", "Saturday comes before Sunday."),
    ("At what temperature does water boil?|When does water boil?", "Water boils at 100 degrees Celsius."),
    ("At what temperature does water freeze?|When does water freeze?", "Water freezes at 0 degrees Celsius."),
    ("What is water made of?|What does water consist of?", "Water is made of hydrogen and oxygen."),
    ("Where does the sun rise?|In which direction does the sun rise?", "The sun rises in the east."),
    ("Where does the sun set?|In which direction does the sun set?", "The sun sets in the west."),
    ("How many continents are there?|Number of continents?", "There are seven continents."),
    (
        "What are the four seasons?|Name the four seasons.|List the seasons.",
        "The four seasons are spring, summer, autumn and winter.",
    ),
    (
        "Name the days of the week.|List the days of the week.|What are the days of the week?",
        "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday.",
    ),
    (
        "Name the months of the year.|List the months.|What are the months of the year?",
        "January, February, March, April, May, June, July, August, September, October, November and December.",
    ),
    ("Name three colors.|List some colors.|Give me three colors.|Tell me three colors.", "Red, blue and green."),
    ("Name three animals.|List some animals.|Give me three animals.|Tell me three animals.", "Cat, dog and horse."),
    (
        "Name three fruits.|List some fruits.|Give me three fruits.|Tell me three fruits.",
        "Apples, bananas and cherries.",
    ),
    ("What are the primary colors?|Name the primary colors.", "The primary colors are red, blue and yellow."),
    ("How many sides does a triangle have?|Sides of a triangle?", "A triangle has three sides."),
    ("How many sides does a square have?|Sides of a square?", "A square has four sides."),
    ("Who wrote Hamlet?|Who wrote Romeo and Juliet?|Who is the author of Hamlet?", "William Shakespeare wrote it."),
    (
        "What language do people speak in Brazil?|Which language is spoken in Brazil?",
        "People in Brazil speak Portuguese.",
    ),
    ("What language do people speak in Mexico?|Which language is spoken in Mexico?", "People in Mexico speak Spanish."),
    (
        "What is the alphabet?|Say the alphabet.|List the letters of the alphabet.",
        "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z",
    ),
)
_DEFINITIONS = (
    "telescope:a tool that makes far things look near;library:a place where you can borrow books;"
    "triangle:a shape with three sides;island:land with water all around it;"
    "desert:a dry place with very little rain;hospital:a place where ill people are helped;"
    "bakery:a shop where bread is made;volcano:a mountain that can throw out hot rock;"
    "doctor:a person who helps ill people;teacher:a person who helps others to learn;"
    "farmer:a person who grows food;pilot:a person who flies planes;king:a man who rules a country;"
    "queen:a woman who rules a country;museum:a place where old or beautiful things are shown;"
    "bicycle:a vehicle with two wheels;piano:an instrument with black and white keys;"
    "guitar:an instrument with six strings;planet:a large round body that goes around a star;"
    "star:a very large ball of hot gas;moon:a body that goes around a planet;"
    "river:a long stream of water that flows to the sea;lake:a large area of water with land around it;"
    "forest:a large area full of trees;mountain:a very high hill;computer:a machine that works with data;"
    "robot:a machine that can do work by itself;dictionary:a book that explains words;"
    "map:a drawing that shows where places are;clock:a thing that shows the time;"
    "thermometer:a tool that measures how warm it is;umbrella:a thing that keeps you dry in the rain;"
    "whale:a very large animal that lives in the sea;penguin:a bird that swims but cannot fly;"
    "bee:an insect that makes honey;spider:a small animal with eight legs;"
    "noun:a word for a person, a place or a thing;verb:a word for an action;"
    "adjective:a word that describes a thing;tokenizer:a program that cuts text into small pieces;"
    "language model:a program that predicts the next word of a text;"
    "neural network:a program that learns from examples;transformer:a neural network that uses attention;"
    "server:a computer that answers requests;cache:a fast store for things that are needed again;"
    "algorithm:a list of steps that solves a problem;database:an ordered collection of data;"
    "photosynthesis:the way plants make food from light"
)
DEFINITIONS = _pairs(_DEFINITIONS, ";")
_DEFINE_ASK = (
    "What is {w}?",
    "What's {w}?",
    "Define {w}.",
    "Explain what {w} is.",
    "What is the meaning of {b}?",
    "What does {b} mean?",
    "Give me a definition of {b}.",
    "Tell me what {w} is.",
    "Definition of {b}",
    "Describe {w}.",
    "Do you know what {w} is?",
)
_OPPOSITES = (
    "hot:cold,big:small,good:bad,old:young,fast:slow,high:low,up:down,day:night,black:white,happy:sad,rich:poor,"
    "open:closed,full:empty,early:late,light:dark,hard:soft,clean:dirty,strong:weak,long:short,left:right,"
    "new:old,easy:difficult,near:far,loud:quiet,wet:dry,yes:no,true:false,love:hate,begin:end,push:pull,win:lose,"
    "buy:sell,first:last,inside:outside,cheap:expensive,thick:thin,wide:narrow,awake:asleep,brave:afraid,"
    "sweet:sour,tall:short,before:after,always:never"
)
OPPOSITES = _pairs(_OPPOSITES, ",")
_OPPOSITE_ASK = (
    "What is the opposite of {w}?",
    "What's the opposite of {w}?",
    "Opposite of {w}?",
    "Tell me the opposite of {w}.",
    "Give me the opposite of {w}.",
    'What is the opposite of "{w}"?',
    "Which word is the opposite of {w}?",
)


def capital(draw: Draw) -> Dialogue:
    """Ask for the capital of a country."""
    country, city = draw.choice(CAPITALS)
    shown = country.lower() if draw.noise and draw.chance(0.2) else country
    return ask("capitals", draw.phrase(_CAPITAL_ASK, c=shown), f"The capital of {country} is {city}.")


def country_of(draw: Draw) -> Dialogue:
    """Ask for the country of a capital that has one name for its country."""
    country, city = draw.choice([row for row in CAPITALS if row[1] not in ("London", "Washington")])
    return ask("capitals", draw.phrase(_COUNTRY_ASK, c=city), f"{city} is the capital of {country}.")


def fact(draw: Draw) -> Dialogue:
    """Ask for an everyday fact."""
    prompts, answer = draw.choice(_FACTS)
    return ask("facts", draw.phrase(prompts.split("|")), answer)


def definition(draw: Draw) -> Dialogue:
    """Ask what a word means."""
    word, meaning = draw.choice(DEFINITIONS)
    shown = word if word == "photosynthesis" else with_article(word)
    answer = f"{shown[0].upper()}{shown[1:]} is {meaning}."
    return ask("definitions", draw.phrase(_DEFINE_ASK, w=shown, b=word), answer)


def opposite(draw: Draw) -> Dialogue:
    """Ask for the opposite of a word."""
    word, other = draw.choice(OPPOSITES)
    return ask("opposites", draw.phrase(_OPPOSITE_ASK, w=word), f"The opposite of {word} is {other}.")


_KINDS: tuple[tuple[Callable[[Draw], Dialogue], float], ...] = (
    (capital, 5), (country_of, 1), (fact, 5), (definition, 4), (opposite, 2),
)  # fmt: skip


def make(draw: Draw) -> Dialogue:
    """Return a capital, a country, a fact, a definition or an opposite."""
    kinds, shares = zip(*_KINDS, strict=True)
    chosen: Callable[[Draw], Dialogue] = draw.rng.choices(kinds, shares)[0]
    return chosen(draw)


def plain(draw: Draw) -> PlainText:
    """Return three to eight true sentences, as a document without roles."""
    sentences = [f"The capital of {country} is {capital}." for country, capital in draw.sample(CAPITALS, 4)]
    sentences += [answer for _, answer in draw.sample(_FACTS, 4) if not answer.startswith("It ")]
    sentences += [f"{w.capitalize()}: {meaning}." for w, meaning in draw.sample(DEFINITIONS, 2)]
    return PlainText("plain_facts", " ".join(draw.sample(sentences, draw.number(3, 8))))
