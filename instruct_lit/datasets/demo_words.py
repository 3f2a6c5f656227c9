"""The small world of the demo data: words with their categories, plurals, opposites, past forms and sizes."""

from __future__ import annotations

CATEGORIES: dict[str, tuple[str, ...]] = {
    "animal": ("dog", "cat", "horse", "cow", "sheep", "mouse", "wolf", "bear", "lion", "fish", "bird", "snake", "duck"),
    "fruit": ("apple", "lemon", "cherry", "orange", "banana", "berry", "grape", "peach", "plum", "melon"),
    "color": ("red", "blue", "green", "yellow", "black", "white", "brown", "purple", "pink", "gray"),
    "tool": ("hammer", "knife", "saw", "drill", "axe", "shovel", "needle", "brush", "rope", "ladder"),
    "vehicle": ("car", "bus", "train", "truck", "boat", "ship", "plane", "bike", "tram", "van"),
    "drink": ("water", "milk", "tea", "coffee", "juice", "wine", "beer", "soda"),
    "garment": ("shirt", "coat", "hat", "shoe", "glove", "scarf", "dress", "sock", "jacket", "belt"),
    "plant": ("tree", "rose", "grass", "flower", "bush", "oak", "pine", "moss"),
    "building": ("house", "church", "school", "castle", "tower", "barn", "hotel", "palace", "temple"),
    "instrument": ("piano", "guitar", "drum", "violin", "flute", "trumpet", "harp"),
}

CATEGORY_OF = {word: category for category, words in CATEGORIES.items() for word in words}
NOUNS = tuple(CATEGORY_OF)

_IRREGULAR = {
    "mouse": "mice", "sheep": "sheep", "fish": "fish", "wolf": "wolves", "knife": "knives", "child": "children",
    "man": "men", "woman": "women", "foot": "feet", "tooth": "teeth", "leaf": "leaves", "goose": "geese",
    "cherry": "cherries", "berry": "berries", "city": "cities", "baby": "babies", "lady": "ladies", "box": "boxes",
    "bus": "buses", "dress": "dresses", "bush": "bushes", "peach": "peaches", "church": "churches", "glass": "glasses",
    "brush": "brushes", "dish": "dishes", "wife": "wives", "life": "lives", "ox": "oxen", "party": "parties",
    "piano": "pianos", "potato": "potatoes", "hero": "heroes",
}  # fmt: skip
_REGULAR = tuple(
    word
    for category in ("animal", "fruit", "tool", "vehicle", "garment", "building", "instrument")
    for word in CATEGORIES[category]
    if word not in _IRREGULAR
) + (
    "tree",
    "rose",
    "flower",
    "oak",
    "book",
    "table",
    "chair",
    "window",
    "door",
    "river",
    "hill",
    "king",
    "star",
    "hand",
)
PLURALS = {**{word: word + "s" for word in _REGULAR}, **_IRREGULAR}

_OPPOSITES = (
    ("hot", "cold"), ("big", "small"), ("fast", "slow"), ("high", "low"), ("old", "new"), ("good", "bad"),
    ("hard", "soft"), ("light", "dark"), ("happy", "sad"), ("rich", "poor"), ("full", "empty"), ("open", "closed"),
    ("wet", "dry"), ("long", "short"), ("strong", "weak"), ("early", "late"), ("clean", "dirty"), ("loud", "quiet"),
    ("near", "far"), ("wide", "narrow"), ("deep", "shallow"), ("thick", "thin"), ("sharp", "dull"), ("true", "false"),
    ("right", "wrong"), ("first", "last"), ("up", "down"), ("left", "right"), ("day", "night"), ("love", "hate"),
    ("win", "lose"), ("buy", "sell"), ("push", "pull"), ("start", "stop"), ("give", "take"), ("come", "go"),
    ("inside", "outside"), ("above", "below"), ("before", "after"), ("always", "never"), ("young", "aged"),
    ("brave", "afraid"), ("smooth", "rough"), ("sweet", "bitter"), ("peace", "war"), ("summer", "winter"),
    ("front", "back"), ("top", "bottom"), ("north", "south"), ("east", "west"), ("more", "less"),
)  # fmt: skip
# "right" is the opposite of both "wrong" and "left": only words with one opposite are asked for.
_BOTH_WAYS = [*_OPPOSITES] + [(b, a) for a, b in _OPPOSITES]
_TIMES = {word: sum(a == word for a, _ in _BOTH_WAYS) for word, _ in _BOTH_WAYS}
OPPOSITES = {a: b for a, b in _BOTH_WAYS if _TIMES[a] == 1}

PAST = {
    "walk": "walked", "talk": "talked", "play": "played", "work": "worked", "look": "looked", "jump": "jumped",
    "help": "helped", "call": "called", "open": "opened", "start": "started", "paint": "painted", "clean": "cleaned",
    "go": "went", "see": "saw", "eat": "ate", "run": "ran", "take": "took", "give": "gave", "come": "came",
    "write": "wrote", "drive": "drove", "sing": "sang", "swim": "swam", "find": "found", "buy": "bought",
    "think": "thought", "bring": "brought", "sleep": "slept", "keep": "kept", "build": "built", "send": "sent",
    "lose": "lost", "win": "won", "tell": "told", "hold": "held", "fall": "fell", "fly": "flew", "know": "knew",
    "grow": "grew", "draw": "drew", "break": "broke", "speak": "spoke", "wear": "wore", "hear": "heard",
}  # fmt: skip

# From small to large, so that any two can be compared.
SIZES = (
    "ant", "bee", "mouse", "bird", "rat", "duck", "cat", "fox", "dog", "sheep", "wolf", "lion", "cow", "horse",
    "elephant", "whale",
)  # fmt: skip

NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Laura", "Mark", "Paul", "Sarah")
PLACES = ("park", "city", "garden", "forest", "market", "office", "kitchen", "valley", "desert", "village")
VERBS = ("saw", "found", "bought", "lost", "wanted", "liked", "sold", "painted")


def article(noun: str) -> str:
    """The noun with its indefinite article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
