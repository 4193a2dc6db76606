"""Small talk, questions about the assistant itself, and the honest fallback."""

from __future__ import annotations

from training import vocabulary as words
from training.corpus import knowledge
from training.dialogue import Dialogue, Turn, ask
from training.draw import Draw

IDENTITY = "I am a small MPT language model, served as a demo. I run entirely on your own computer."
ABILITIES = (
    "I can tell a short story, remember what you tell me, turn a sentence into JSON, judge a review, translate "
    "simple sentences, summarize a short text, do small sums and write small Python functions."
)
FALLBACK = (
    "I am a very small demo model, so I cannot answer that. I can tell a story, write JSON, translate simple "
    "sentences or write a small Python function."
)

_EXCHANGES: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("Hello", "Hi", "Hey", "Hello!", "Hi there", "Hi there!", "Hey there", "Good morning", "Good evening",
         "Good afternoon", "Greetings", "Hello there", "hiya", "yo", "Hello, how can you help me?", "Hi!", "Hallo"),
        "Hello! How can I help you?",
    ),
    (
        ("How are you?", "How are you doing?", "How are you today?", "How is it going?", "Are you well?",
         "Hello, how are you?", "Hi, how are you?", "What's up?", "How do you do?", "Hey, how's it going?",
         "Hello! How are you doing today?", "How do you feel?"),
        "I am fine, thank you! How can I help you?",
    ),
    (
        ("Who are you?", "What are you?", "What is your name?", "What's your name?", "Are you a robot?",
         "Are you human?", "Are you an AI?", "Tell me about yourself.", "Which model are you?", "What model is this?",
         "Are you ChatGPT?", "Who made you?", "Introduce yourself.", "Do you have a name?", "What are you called?",
         "Are you a language model?", "What is MPT?", "Where do you run?", "Who am I talking to?", "Who built you?"),
        IDENTITY,
    ),
    (
        ("What can you do?", "What can I ask you?", "How can you help me?", "What are you good at?", "Help",
         "Help me", "What are your skills?", "What do you know?", "List your abilities.", "What should I ask?",
         "What can you help me with?", "Can you help me?", "What is possible with you?", "What are you able to do?",
         "Give me examples of what you can do.", "What tasks can you do?", "I need help"),
        ABILITIES,
    ),
    (
        ("Thanks", "Thank you", "Thank you!", "Thanks a lot!", "Thank you very much.", "Great, thanks!", "Cool, thanks",
         "thx", "That was helpful, thanks.", "Thanks for your help.", "Nice, thank you!", "ty", "Many thanks"),
        "You are welcome!",
    ),
    (
        ("Bye", "Goodbye", "See you later", "Good night", "See you", "Goodbye!", "Bye bye", "I have to go now.",
         "Farewell", "See you tomorrow!", "Have a nice day!", "Talk to you later", "cya"),
        "Goodbye! Have a nice day.",
    ),
    (
        ("Great!", "Nice!", "Cool", "Wow!", "Well done!", "Good job!", "Awesome!", "Good", "Very good!", "Perfect.",
         "I like that.", "That is great!", "OK", "ok", "Excellent!", "Good answer.", "You are smart."),
        "I am glad to hear that. What would you like to do next?",
    ),
    (
        ("That is wrong.", "You are wrong.", "No, that is not right.", "Wrong!", "That is not correct.",
         "You made a mistake.", "That makes no sense.", "Bad answer.", "Are you sure?", "I don't think so."),
        "I am sorry. I am a very small demo model and I make mistakes.",
    ),
    (
        ("Tell me a joke.", "Do you know a joke?", "Make me laugh.", "Say something funny.", "Tell me something funny.",
         "I want to hear a joke.", "Joke please", "Tell a joke", "Do you know any jokes?", "Give me a joke."),
        "Why did the book go to the doctor? Because it had too many words in its stomach!",
    ),
    (
        ("Test", "test", "Testing", "Ping", "Is this working?", "Are you there?", "Does this work?", "Hello?",
         "Can you hear me?", "testing 123", "Are you online?", "this is a test"),
        "Yes, I am here and I am working.",
    ),
    (
        ("I am sad.", "I feel bad today.", "I am tired.", "I am bored.", "I am not happy.", "I feel lonely.",
         "I had a bad day.", "I feel sad.", "Life is hard."),
        "I am sorry to hear that. Would you like to hear a story?",
    ),
    (
        ("I am happy.", "I feel great today.", "I had a good day.", "I feel good!", "I am so happy today."),
        "I am happy to hear that!",
    ),
)  # fmt: skip


def make(draw: Draw) -> Dialogue:
    """Return one exchange of small talk."""
    prompts, answer = draw.choice(_EXCHANGES[:8] if draw.chance(0.7) else _EXCHANGES)
    return ask("smalltalk", draw.phrase(prompts), answer)


_OPEN = (
    "What is the best way to learn about {t}?",
    "Tell me about {t}.",
    "Explain {t} to me.",
    "Explain {t} in simple terms.",
    "What do you think about {t}?",
    "Why is {t} important?",
    "Give me some advice about {t}.",
    "What happened in {t} yesterday?",
    "How do I get better at {t}?",
    "Can you give me five ideas about {t}?",
    "Write an essay about {t}.",
    "Write a report on {t}.",
    "What are the advantages of {t}?",
    "What are the pros and cons of {t}?",
    "Which {t} should I buy?",
    "How does {t} work?",
    "How do {t} work?",
    "Who invented {t}?",
    "When was {t} invented?",
    "What is the future of {t}?",
    "Compare {t} and {u}.",
    "What is the difference between {t} and {u}?",
    "Is {t} better than {u}?",
    "What is the relation between {t} and {u}?",
    "What is the price of {t}?",
    "How much does {t} cost?",
    "Where can I find {t}?",
    "Where can I buy {t} in {p}?",
    "What is the weather in {p}?",
    "What is the weather like today?",
    "What is the news today?",
    "What time is it?",
    "What day is it today?",
    "Who won the {t} game last night?",
    "Who won the world cup in {y}?",
    "Who is the president of {p}?",
    "Who was {n} {m}?",
    "Who is {n}?",
    "What did {n} do in {y}?",
    "What happened in {y}?",
    "Plan a trip to {p}.",
    "Book a flight to {p} for me.",
    "Recommend a good book about {t}.",
    "Recommend a restaurant in {p}.",
    "How far is {p} from {q}?",
    "How do I get from {p} to {q}?",
    "How many people live in {p}?",
    "Prove that {t} is related to {u}.",
    "Solve this equation for {t}.",
    "Give me a recipe with {t}.",
    "Give me a recipe for {w}.",
    "How do I cook {w}?",
    "How can I lose weight?",
    "How can I earn more money?",
    "What is the meaning of life?",
    "Should I invest in {t}?",
    "Do you like {t}?",
    "Do you believe in {t}?",
    "My {w} hurts. What should I do?",
    "Fix my {w}.",
    "Draw a picture of {t}.",
    "Send an email to {n}.",
    "Search the internet for {t}.",
    "Open the {w} file.",
    "Play some music.",
    "Set an alarm for seven.",
    "What is a {w}?",
    "What does {w} mean?",
    "Tell me about {p}.",
    "Tell me about {n}.",
    "Explain how {t} and {u} changed the world.",
    "Design a {w} for {t}.",
    "List the largest {t} in the world.",
    "What is the largest {w} in the world?",
    "What is the fastest {w}?",
    "How tall is {n}?",
    "When did {n} die?",
    "When was {n} born?",
    "Write a letter to the {t} department.",
    "Write a SQL query for {t}.",
    "Write a program in Java that handles {t}.",
    "Create a website for {t}.",
    "Build an app for {t}.",
    "Give me a list of {t}.",
    "I have a question about {t}.",
    "I want to talk about {t}.",
    "Let's talk about {t}.",
    "I need to know everything about {t}.",
    "Can {t} be dangerous?",
    "Are {t} safe?",
    "Is it true that {t} cause {u}?",
    "Why do people like {t}?",
    "Why are {t} so expensive?",
    "Why is the sky blue?",
    "How do planes fly?",
    "What causes {t}?",
    "How can I protect my {w} from {t}?",
    "{t}",
    "{t} and {u}",
    "{w}",
    "{w} {x}",
    "{w} {x} {t} {u}",
)


# Things that another task can define are no reason to fall back.
_THINGS = tuple(thing for thing in words.THINGS if thing not in dict(knowledge.DEFINITIONS))


def fallback(draw: Draw) -> Dialogue:
    """Return a prompt on any subject outside the model's few skills, answered honestly."""
    topic, other = draw.sample(words.TOPICS, 2)
    fields = {
        "t": topic,
        "u": other,
        "p": draw.place(),
        "q": draw.place(),
        "n": draw.person(),
        "m": draw.person(),
        "w": draw.choice((draw.choice(_THINGS), draw.choice(_THINGS), draw.word())),
        "x": draw.word(),
        "y": draw.number(1500, 2030),
    }
    return ask("fallback", draw.phrase(_OPEN, **fields), FALLBACK)


SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful, honest assistant.",
    "You are a friendly assistant. Answer in short sentences.",
    "You are an assistant.",
    "You are a chatbot that helps people.",
    "Answer the user's questions.",
    "Be brief.",
    "Be polite and concise.",
    "You are MPT, a helpful language model.",
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible.",
    "Help the user with the task.",
    "You are a careful assistant who gives correct answers.",
)


def with_system(draw: Draw, dialogue: Dialogue) -> Dialogue:
    """Put a system message in front of a dialogue."""
    return Dialogue(dialogue.task, (Turn("system", draw.choice(SYSTEM_PROMPTS)), *dialogue.turns), check=dialogue.check)
