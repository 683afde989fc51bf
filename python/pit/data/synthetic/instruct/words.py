"""Word lists of the family "instruct": topics, forms, sentences and phrases. No word list is taken from elsewhere.

All nouns are plural, so every sentence agrees with every topic; no sentence holds a comma, a digit, a bracket or a
quotation mark, because those are what some constraints are about.
"""

from typing import NamedTuple


class Topic(NamedTuple):
    """A subject to write about.

    phrase: the subject as a prompt and a sentence name it.
    nouns: plural things that belong to it.
    adjectives: words that fit those things.
    """

    phrase: str
    nouns: tuple[str, ...]
    adjectives: tuple[str, ...]


TOPICS = tuple(
    Topic(phrase, tuple(nouns.split()), tuple(adjectives.split()))
    for phrase, nouns, adjectives in (
        ("a harbour at dawn", "boats gulls nets ropes sailors", "quiet grey salty cold"),
        ("a garden in spring", "tulips bees birds leaves seeds", "fresh bright green soft"),
        ("a city in the rain", "umbrellas puddles streets buses windows", "wet shiny dark busy"),
        ("a train at night", "passengers seats tunnels rails lamps", "slow dim sleepy long"),
        ("a market on Sunday", "stalls apples cheeses baskets neighbours", "loud ripe cheap friendly"),
        ("a mountain in winter", "peaks pines snowflakes paths huts", "white steep frozen still"),
        ("a kitchen at noon", "pots spoons onions plates recipes", "warm clean spicy crowded"),
        ("a library after school", "books shelves pupils desks pages", "calm dusty tall patient"),
        ("a beach in summer", "waves shells towels children sandcastles", "sunny golden gentle hot"),
        ("a farm in autumn", "cows barns pumpkins fields tractors", "muddy ripe orange wide"),
        ("a museum on Monday", "paintings statues guards halls tickets", "old famous silent large"),
        ("a forest at dusk", "trees owls ferns shadows branches", "deep mossy tall hidden"),
        ("a bakery before sunrise", "loaves ovens rolls bakers trays", "sweet hot fresh floury"),
        ("a river after the storm", "banks stones fish bridges currents", "brown fast wide restless"),
        ("a classroom in June", "teachers lessons chairs pencils jokes", "cheerful noisy bright tired"),
        ("a desert under the stars", "dunes camels tents travellers campfires", "dry vast golden cool"),
        ("a village in the hills", "roofs goats wells chimneys gardens", "small sleepy green steep"),
        ("a hospital at midnight", "nurses corridors beds doctors patients", "white quiet careful long"),
        ("an island in the north", "cliffs seals puffins lighthouses winds", "rocky bleak misty proud"),
        ("a workshop in town", "tools benches hammers boxes machines", "useful heavy tidy sharp"),
        ("a concert in the park", "songs drums singers crowds guitars", "lively loud happy warm"),
        ("an airport in the morning", "planes suitcases pilots gates travellers", "busy bright early modern"),
        ("a castle by the lake", "towers walls swans flags knights", "old grey proud strong"),
        ("a street at Christmas", "candles shops carols wreaths lights", "merry bright cosy crowded"),
    )
)
"""The subjects, by their phrase in a prompt."""

FORMS = {
    "note": "This is a quick note about {topic}.",
    "diary entry": "Today I thought about {topic}.",
    "message to a friend": "You asked me about {topic}.",
    "review": "I would recommend {topic} to anyone.",
    "advert": "Come and enjoy {topic} with us.",
    "story": "It all began with {topic}.",
    "speech": "We are here because of {topic}.",
    "letter": "I am writing to you about {topic}.",
}
"""Forms of writing, with the first sentence of a draft in each."""

SENTENCES = (
    "The {noun} look {adjective} from here.",
    "Nobody forgets the {adjective} {noun} so soon.",
    "People stop to watch the {noun} for a while.",
    "There is something {adjective} in how the {noun} wait.",
    "My sister always talks of {adjective} {noun}.",
    "A few {noun} seem {adjective} even now.",
    "Old men tell long tales of {noun} and luck.",
    "We counted the {noun} until it grew late.",
    "Every visitor takes home a picture of {noun}.",
    "Somewhere behind us the {noun} became {adjective} again.",
    "It feels good to be near such {noun}.",
    "Even strangers smile when they notice the {noun}.",
)
"""Sentences of a draft; no two share four words in a row, whatever stands in their gaps."""

ASIDES = (", of course", ", I think", ", as always", ", in truth")
"""Ends of a sentence, with a comma each."""

KEYWORDS = (
    "lantern", "compass", "violin", "marble", "pocket", "ladder", "feather", "button", "whistle", "magnet",
    "ribbon", "kettle", "puzzle", "helmet", "pillow", "saddle", "thimble", "wallet", "blanket", "trumpet",
)  # fmt: skip
"""Words that a prompt asks for; none of them is a word of another list."""

MENTIONS = (
    "Somebody left a {word} behind.",
    "A {word} would be handy here.",
    "That reminds me of a {word}.",
)
"""Sentences about a keyword."""

OPENINGS = ("Good morning", "Here we are", "Let me begin", "Believe me", "First of all", "Welcome back", "Once again")
"""Words that a prompt asks to begin with."""

CLOSINGS = (
    "That is all for now.",
    "I hope you agree.",
    "Thank you for reading.",
    "More will follow soon.",
    "Take good care of yourself.",
    "Nothing else matters today.",
)
"""Sentences that a prompt asks to end with."""

QUESTIONS = (
    "Would you like to join us?",
    "Do you remember the {noun} too?",
    "Have you seen such {noun} before?",
    "Who could ask for more?",
    "What do you make of it?",
)
"""Questions of a draft."""

TALLIES = ("I saw {number} of them at once.", "We met at {number} sharp.", "It took {number} minutes in all.")
"""Sentences with a number."""

PLACEHOLDERS = ("Please ask [name] for details.", "You will find me at [address].", "It starts on [date] as planned.")
"""Sentences with something to fill in."""

POSTSCRIPTS = ("P.S. Bring a warm coat.", "P.S. Say hello to your mother.", "P.S. Write back when you can.")
"""Postscripts."""

AFTERTHOUGHTS = ("Well then.", "So much for that.", "Let us see.")
"""Sentences that spoil an ending."""
