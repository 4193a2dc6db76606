"""Word lists shared by several tasks."""

# ruff: noqa: SIM905 -- long word lists read better as text

from __future__ import annotations

ONSETS = (
    *(
        "b b bl br c ch cl cr d d dr f fl fr g g gl gr h h j j k k kl kr l l l m m m n n n p p pl pr qu r r r s s s "
        "sh sk sl sm sn sp st st t t t th tr v v w w y z z"
    ).split(),
    "",
    "",
)
VOWELS = tuple("a e i o u a e i o u a e i o ai ea ee ie oo ou y".split())
INNER_CODAS = ("", "", "", "", "", "l", "m", "n", "r", "s", "t", "nd", "rk")
CODAS = (
    "",
    "",
    "",
    "",
    "a",
    "o",
    "k",
    "l",
    "m",
    "n",
    "n",
    "r",
    "s",
    "s",
    "t",
    "x",
    "ng",
    "th",
    "ck",
    "rd",
    "ia",
    "us",
    "el",
)

PEOPLE = tuple(
    "Anna Tom Maria John Lucy Peter Emma Paul Sara David Laura Mark Julia Ben Nina Max Clara Leo Eva Sam Alice Bob "
    "Carol Dan Ella Frank Grace Henry Ivy Jack Kate Liam Mia Noah Olivia Pablo Quinn Rosa Simon Tina Victor Wendy "
    "Zoe Adam Bella Carlos Diana Eric Fiona George Hannah Ian Jane Karl Linda Michael Nora Oscar Paula Robert "
    "Sofia Thomas Ursula Vera William Yara Amir Chen Priya Fatima Kenji Yuki Omar Leila Ahmed Mei Ravi Anita Hugo "
    "Marta Felix Ines Jonas Lena Mateo Louise Pierre Claire Hans Greta Luis Elena Charlie James Mary Ali Alex "
    "Chris Daniel Emily Sarah Susan Helen Martin Andrew Jim Joe Bill Steve Lisa Amy Kevin Brian".split()
)
SURNAMES = tuple(
    "Smith Jones Taylor Brown Williams Wilson Johnson Davies Robinson Wright Thompson Evans Walker White Roberts Green "
    "Hall Wood Jackson Clarke Miller Anderson Campbell Murphy Kelly Sullivan Fitzgerald MacDonald Keller Schneider "
    "Hoffmann Zimmermann Lindqvist Johansson Rasmussen Kowalski Nowak Petrov Ivanova Garcia Fernandez Rodriguez "
    "Gonzalez Rossi Bianchi Ferrari Dubois Lefebvre Moreau Nakamura Tanaka Yamamoto Nguyen Singh Sharma Okafor "
    "Mbeki Haddad Papadopoulos Silva".split()
)
PLACE_PATTERNS = ("New {}", "Saint {}", "{} Bay", "{} Falls", "Port {}", "East {}", "{} Hill", "Old {}")
TOWNS = (
    "Paris",
    "London",
    "Berlin",
    "Madrid",
    "Rome",
    "Lisbon",
    "Vienna",
    "Oslo",
    "Dublin",
    "Athens",
    "Prague",
    "Boston",
    "Chicago",
    "Seattle",
    "Denver",
    "Austin",
    "Toronto",
    "Sydney",
    "Tokyo",
    "Delhi",
    "Cairo",
    "Lima",
    "Munich",
    "Hamburg",
    "Lyon",
    "Nice",
    "Milan",
    "Seville",
    "Porto",
    "Geneva",
    "Zurich",
    "Oxford",
    "Dallas",
    "Miami",
    "Houston",
    "Nairobi",
    "Mumbai",
    "Osaka",
    "Bogota",
    "Quito",
    "New York",
    "San Francisco",
    "Los Angeles",
)
COLOURS = tuple("red blue green yellow orange purple pink black white brown grey silver gold turquoise".split())
ANIMALS = tuple(
    "cat dog rabbit hamster parrot horse turtle goldfish mouse fox bear owl frog duck goat sheep pig hen lion "
    "elephant monkey tiger penguin whale dolphin snail hedgehog squirrel beaver deer wolf donkey".split()
)
PETS = ("cat", "dog", "rabbit", "hamster", "parrot", "horse", "turtle", "goldfish", "mouse", "lizard", "pony", "puppy")
JOBS = (
    "teacher",
    "nurse",
    "doctor",
    "baker",
    "farmer",
    "pilot",
    "painter",
    "engineer",
    "gardener",
    "lawyer",
    "cook",
    "dentist",
    "carpenter",
    "driver",
    "musician",
    "plumber",
    "writer",
    "firefighter",
    "librarian",
    "designer",
    "programmer",
    "singer",
    "scientist",
    "student",
    "waiter",
    "tailor",
    "photographer",
    "journalist",
)
FOODS = tuple(
    "pizza pasta soup bread cheese rice salad chocolate cake honey apples bananas sushi curry pancakes fish potatoes "
    "tomatoes noodles cookies cherries grapes olives tacos".split()
)
HOBBIES = (
    "chess",
    "tennis",
    "football",
    "painting",
    "reading",
    "swimming",
    "cooking",
    "dancing",
    "hiking",
    "fishing",
    "singing",
    "gardening",
    "photography",
    "running",
    "cycling",
    "skiing",
    "music",
    "baking",
    "yoga",
    "basketball",
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
THINGS = tuple(
    "book lamp chair table phone bicycle car camera watch guitar bag hat jacket mirror clock kettle pencil "
    "umbrella blanket sofa desk laptop radio basket vase drum tent ladder hammer bottle candle ring scarf shoe "
    "shirt cup spoon box piano violin telescope map kite boat".split()
)
TOPICS = tuple(
    "politics music physics chemistry history football law medicine religion philosophy economics money banks taxes "
    "stocks business marketing science biology space stars planets galaxies rockets satellites computers software "
    "hardware networks databases robots machines engines cars trains planes ships bridges houses castles towers "
    "cities villages countries borders wars peace treaties kings queens presidents elections parties laws courts "
    "police crime prisons schools exams universities teachers students books novels poems films movies actors "
    "directors songs singers bands guitars pianos drums dance theatre museums paintings sculpture photos cameras "
    "fashion clothes shoes hats jewels gold silver iron steel copper oil gas coal wind electricity batteries light "
    "sound heat gravity energy atoms molecules cells genes viruses bacteria plants trees flowers forests deserts "
    "mountains volcanoes earthquakes storms floods climate weather clouds rain snow ice glaciers rivers lakes "
    "oceans islands beaches fish whales sharks birds eagles insects bees spiders snakes dinosaurs fossils evolution "
    "health food diets vitamins sleep stress exercise running yoga swimming tennis golf chess games toys puzzles "
    "cards magic dreams love friendship family marriage children parents babies work jobs salaries bosses meetings "
    "holidays travel hotels flights passports maps languages grammar spelling words letters numbers algebra "
    "geometry statistics probability calculus logic time clocks calendars birthdays parties presents cakes cooking "
    "recipes coffee tea wine beer water milk bread cheese fruit vegetables meat spices farms tractors soil "
    "gardens furniture kitchens bathrooms windows doors roofs paint tools nails screws glue paper pens ink printers "
    "phones apps websites passwords email privacy security hackers internet wifi television radio newspapers "
    "journalism advertising shops markets prices trade factories workers unions poverty housing traffic roads "
    "bicycles buses airports harbours tourism souvenirs rugby baseball hockey skiing medals olympics quantum "
    "relativity blockchain bitcoin investing mortgages insurance allergies headaches vaccines surgery hospitals "
    "nurses dentists psychology memory happiness sadness anger fear courage justice freedom democracy".split()
)
