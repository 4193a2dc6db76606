"""Translation of simple sentences between English, French, Spanish and German, from a small lexicon."""

from __future__ import annotations

from dataclasses import dataclass

from training.dialogue import Dialogue, ask
from training.draw import Draw, with_article

LANGUAGES = ("English", "French", "Spanish", "German")

# English; French (m/f); Spanish (m/f); German (m/f/n).
_NOUNS = (
    "cat|chat m|gato m|Katze f;dog|chien m|perro m|Hund m;house|maison f|casa f|Haus n;"
    "book|livre m|libro m|Buch n;car|voiture f|coche m|Auto n;table|table f|mesa f|Tisch m;"
    "door|porte f|puerta f|Tür f;window|fenêtre f|ventana f|Fenster n;flower|fleur f|flor f|Blume f;"
    "garden|jardin m|jardín m|Garten m;city|ville f|ciudad f|Stadt f;man|homme m|hombre m|Mann m;"
    "woman|femme f|mujer f|Frau f;bird|oiseau m|pájaro m|Vogel m;horse|cheval m|caballo m|Pferd n;"
    "key|clé f|llave f|Schlüssel m;chair|chaise f|silla f|Stuhl m;bread|pain m|pan m|Brot n;"
    "apple|pomme f|manzana f|Apfel m;friend|ami m|amigo m|Freund m;teacher|professeur m|profesor m|Lehrer m;"
    "street|rue f|calle f|Straße f;sun|soleil m|sol m|Sonne f;train|train m|tren m|Zug m;bed|lit m|cama f|Bett n;"
    "tree|arbre m|árbol m|Baum m;cake|gâteau m|pastel m|Kuchen m;cup|tasse f|taza f|Tasse f"
)
# English; French m, f; Spanish m, f; German (predicative).
_ADJECTIVES = (
    "big|grand,grande|grande,grande|groß;small|petit,petite|pequeño,pequeña|klein;"
    "beautiful|beau,belle|bonito,bonita|schön;new|neuf,neuve|nuevo,nueva|neu;old|vieux,vieille|viejo,vieja|alt;"
    "red|rouge,rouge|rojo,roja|rot;green|vert,verte|verde,verde|grün;black|noir,noire|negro,negra|schwarz;"
    "white|blanc,blanche|blanco,blanca|weiß;good|bon,bonne|bueno,buena|gut"
)
_PHRASES = (
    "Good morning.|Bonjour.|Buenos días.|Guten Morgen.",
    "Good evening.|Bonsoir.|Buenas tardes.|Guten Abend.",
    "Good night.|Bonne nuit.|Buenas noches.|Gute Nacht.",
    "Hello.|Bonjour.|Hola.|Hallo.",
    "Goodbye.|Au revoir.|Adiós.|Auf Wiedersehen.",
    "Thank you.|Merci.|Gracias.|Danke.",
    "Thank you very much.|Merci beaucoup.|Muchas gracias.|Vielen Dank.",
    "Please.|S'il vous plaît.|Por favor.|Bitte.",
    "How are you?|Comment allez-vous ?|¿Cómo estás?|Wie geht es dir?",
    "I love you.|Je t'aime.|Te quiero.|Ich liebe dich.",
    "What is your name?|Comment t'appelles-tu ?|¿Cómo te llamas?|Wie heißt du?",
    "I am hungry.|J'ai faim.|Tengo hambre.|Ich habe Hunger.",
    "I am thirsty.|J'ai soif.|Tengo sed.|Ich habe Durst.",
    "I am tired.|Je suis fatigué.|Estoy cansado.|Ich bin müde.",
    "Where is the station?|Où est la gare ?|¿Dónde está la estación?|Wo ist der Bahnhof?",
    "I do not understand.|Je ne comprends pas.|No entiendo.|Ich verstehe nicht.",
    "See you tomorrow.|À demain.|Hasta mañana.|Bis morgen.",
    "Yes.|Oui.|Sí.|Ja.",
    "No.|Non.|No.|Nein.",
    "The weather is nice today.|Il fait beau aujourd'hui.|Hoy hace buen tiempo.|Das Wetter ist heute schön.",
    "I would like a coffee.|Je voudrais un café.|Quisiera un café.|Ich möchte einen Kaffee.",
    "How much does it cost?|Combien ça coûte ?|¿Cuánto cuesta?|Wie viel kostet das?",
    "Happy birthday!|Joyeux anniversaire !|¡Feliz cumpleaños!|Alles Gute zum Geburtstag!",
    "Welcome.|Bienvenue.|Bienvenido.|Willkommen.",
    "I am sorry.|Je suis désolé.|Lo siento.|Es tut mir leid.",
    "Excuse me.|Excusez-moi.|Perdón.|Entschuldigung.",
    "I speak English.|Je parle anglais.|Hablo inglés.|Ich spreche Englisch.",
    "I like music.|J'aime la musique.|Me gusta la música.|Ich mag Musik.",
    "It is raining.|Il pleut.|Está lloviendo.|Es regnet.",
    "We are friends.|Nous sommes amis.|Somos amigos.|Wir sind Freunde.",
)


@dataclass(frozen=True)
class _Noun:
    english: str
    forms: tuple[tuple[str, str], ...]  # (word, gender) in French, Spanish, German


def _nouns() -> tuple[_Noun, ...]:
    rows = (row.split("|") for row in _NOUNS.split(";"))
    return tuple(_Noun(r[0], tuple((f.split(" ")[0], f.split(" ")[1]) for f in r[1:])) for r in rows)


NOUNS = _nouns()
ADJECTIVES = tuple(tuple(row.split("|")) for row in _ADJECTIVES.split(";"))
_VOWELS = "aeiouhéœâ"
_GERMAN = {"m": ("der", "ein", "einen", "den"), "f": ("die", "eine", "eine", "die"), "n": ("das", "ein", "ein", "das")}


def _definite(noun: _Noun) -> tuple[str, str, str, str]:
    """Return "the ..." as a subject, in the four languages."""
    (fr, fr_g), (es, es_g), (de, de_g) = noun.forms
    french = f"l'{fr}" if fr[0] in _VOWELS else f"{'le' if fr_g == 'm' else 'la'} {fr}"
    return f"the {noun.english}", french, f"{'el' if es_g == 'm' else 'la'} {es}", f"{_GERMAN[de_g][0]} {de}"


def _indefinite(noun: _Noun, german_case: int) -> tuple[str, str, str, str]:
    """Return "a ..."; `german_case` is 1 for the subject and 2 for the object."""
    (fr, fr_g), (es, es_g), (de, de_g) = noun.forms
    french = f"{'un' if fr_g == 'm' else 'une'} {fr}"
    return (
        with_article(noun.english),
        french,
        f"{'un' if es_g == 'm' else 'una'} {es}",
        f"{_GERMAN[de_g][german_case]} {de}",
    )


def _object(noun: _Noun) -> tuple[str, str, str, str]:
    """Return "the ..." as an object: only German differs from the subject."""
    english, french, spanish, _ = _definite(noun)
    german, gender = noun.forms[2]
    return english, french, spanish, f"{_GERMAN[gender][3]} {german}"


def _cap(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


_OBJECT_VERBS = (
    ("I have", "J'ai", "Tengo", "Ich habe"),
    ("I want", "Je veux", "Quiero", "Ich will"),
    ("I buy", "J'achète", "Compro", "Ich kaufe"),
    ("We have", "Nous avons", "Tenemos", "Wir haben"),
    ("She has", "Elle a", "Ella tiene", "Sie hat"),
    ("He has", "Il a", "Él tiene", "Er hat"),
    ("This is", "C'est", "Esto es", "Das ist"),
)


def _composed(draw: Draw) -> tuple[str, ...]:
    """Return a sentence put together from the lexicon, in the four languages."""
    noun = draw.choice(NOUNS)
    kind = draw.rng.choices(("is", "have", "where", "see"), (5, 5, 2, 2))[0]
    if kind == "is":
        english, french, spanish, german = draw.choice(ADJECTIVES)
        fr = french.split(",")[noun.forms[0][1] == "f"]
        es = spanish.split(",")[noun.forms[1][1] == "f"]
        ends = (f"is {english}.", f"est {fr}.", f"es {es}.", f"ist {german}.")
        return tuple(_cap(f"{the} {end}") for the, end in zip(_definite(noun), ends, strict=True))
    if kind == "have":
        verb = draw.choice(_OBJECT_VERBS)
        nouns = _indefinite(noun, 1 if verb[0] == "This is" else 2)
        return tuple(f"{v} {n}." for v, n in zip(verb, nouns, strict=True))
    if kind == "where":
        starts, ends = ("Where is", "Où est", "¿Dónde está", "Wo ist"), ("?", " ?", "?", "?")
        return tuple(f"{s} {n}{e}" for s, n, e in zip(starts, _definite(noun), ends, strict=True))
    return tuple(f"{v} {n}." for v, n in zip(("I see", "Je vois", "Veo", "Ich sehe"), _object(noun), strict=True))


def _sentence(draw: Draw) -> tuple[str, ...]:
    """Return a composed sentence, or (in training only: they cannot be guessed) a fixed phrase or a single noun."""
    if not draw.held_out and draw.chance(0.35):
        if draw.chance(0.7):
            return tuple(draw.choice(_PHRASES).split("|"))
        noun = draw.choice(NOUNS)
        return _definite(noun) if draw.chance(0.5) else (noun.english, *(form[0] for form in noun.forms))
    return draw.split(lambda: _composed(draw), key="".join)


_ASK = (
    "Translate to {l}: {s}",
    "Translate into {l}: {s}",
    "Translate this to {l}: {s}",
    "Translate this sentence into {l}: {s}",
    'Translate "{s}" to {l}.',
    'Translate "{s}" into {l}.',
    'How do you say "{s}" in {l}?',
    "How do you say {b} in {l}?",
    'What is "{s}" in {l}?',
    "What is {b} in {l}?",
    'Say "{s}" in {l}.',
    "{s} Translate that into {l}.",
    "{s} in {l}",
    "In {l}: {s}",
    "Write this in {l}: {s}",
    "{l} translation of: {s}",
    "Translate from {f} to {l}: {s}",
    "Give me the {l} for {b}.",
    "Put this into {l}: {s}",
)


_SEVERAL_ASK = (
    "Translate these to {l}: {s}",
    "Translate into {l}:\n{s}",
    "Put these sentences into {l}: {s}",
    "Translate the following to {l}.\n{s}",
    "How do you say these in {l}? {s}",
    "{s}\nTranslate all of this into {l}.",
    "Write these sentences in {l}: {s}",
)


def several(draw: Draw) -> Dialogue:
    """Translate two to six sentences, a line for each: more of the lexicon for the same number of tokens."""
    source = 0 if draw.chance(0.85) else draw.number(1, 3)
    target = draw.choice([i for i in range(4) if i != source]) if source == 0 else 0
    sentences = [_sentence(draw) for _ in range(draw.number(2, 6))]
    text = draw.choice((" ", "\n")).join(sentence[source] for sentence in sentences)
    question = draw.phrase(_SEVERAL_ASK, l=LANGUAGES[target], s=text)
    return ask("translation_several", question, "\n".join(sentence[target] for sentence in sentences))


def make(draw: Draw) -> Dialogue:
    """Translate a phrase or a sentence; mostly from English."""
    source = 0 if draw.chance(0.85) else draw.number(1, 3)
    target = draw.choice([i for i in range(4) if i != source]) if source == 0 or draw.chance(0.2) else 0
    sentence = _sentence(draw)
    text = sentence[source]
    bare = text.rstrip(".!? ")
    fields = {"l": LANGUAGES[target], "f": LANGUAGES[source], "s": draw.choice((text, bare)), "b": bare}
    if draw.noise and draw.chance(0.3):
        fields = {key: value.lower() if key in "sb" or draw.chance(0.5) else value for key, value in fields.items()}
    return ask("translation", draw.phrase(_ASK, **fields), sentence[target])
