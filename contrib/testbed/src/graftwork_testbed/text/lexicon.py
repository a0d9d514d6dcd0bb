"""The words of the sentence grammar.

Every wording belongs to one value of each factor that it shows, and no two are alike, so that a sentence says what its labels are. Wordings
at one position of a slot have one number of words whatever the sentiment and the formality, and nearly one number of letters: labels cannot
be told from the length.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

__all__ = [
    "AFFIRMING",
    "EVALUATIONS",
    "FORMALITIES",
    "NEGATING",
    "OPENERS",
    "PEOPLE",
    "SENTIMENTS",
    "SUBJECTS",
    "TIMES",
    "TOPICS",
    "VERBS",
    "VERDICTS",
    "Formality",
    "Sentiment",
    "TopicName",
]

Sentiment: TypeAlias = Literal["negative", "positive"]
Formality: TypeAlias = Literal["informal", "formal"]
TopicName: TypeAlias = Literal["food", "travel", "music", "film", "books", "technology", "sport", "clothing"]

SENTIMENTS: tuple[Sentiment, ...] = ("negative", "positive")
FORMALITIES: tuple[Formality, ...] = ("informal", "formal")
TOPICS: tuple[TopicName, ...] = ("food", "travel", "music", "film", "books", "technology", "sport", "clothing")


def _words(listed: str) -> tuple[str, ...]:
    return tuple(listed.split())


SUBJECTS: dict[TopicName, tuple[str, ...]] = {
    "food": _words("soup curry breakfast salad pudding stew lasagne omelette sandwich pie risotto dessert"),
    "travel": _words("cruise hostel ferry flight tour hotel campsite train excursion resort safari cabin"),
    "music": _words("album song concert symphony ballad opera duet anthem chorus sonata overture melody"),
    "film": _words("thriller comedy documentary sequel western cartoon trailer remake whodunit blockbuster biopic drama"),
    "books": _words("novel memoir biography poem anthology textbook essay paperback fairytale trilogy dictionary handbook"),
    "technology": _words("laptop printer router tablet keyboard phone camera monitor headset browser scanner speaker"),
    "sport": _words("match race tournament marathon final regatta derby playoff relay championship sprint rodeo"),
    "clothing": _words("jacket coat scarf dress sweater cardigan blouse raincoat hat suit tunic waistcoat"),
}
"""What a sentence is about, twelve words a topic."""

VERBS: dict[TopicName, tuple[str, ...]] = {
    "food": ("ordered", "tasted", "ate", "cooked"),
    "travel": ("booked", "chose", "took", "reserved"),
    "music": ("heard", "played", "rehearsed", "recorded"),
    "film": ("watched", "streamed", "saw", "rented"),
    "books": ("read", "finished", "borrowed", "skimmed"),
    "technology": ("installed", "tested", "configured", "repaired"),
    "sport": ("followed", "attended", "entered", "refereed"),
    "clothing": ("wore", "ironed", "modelled", "washed"),
}
"""What one does with it, four words a topic."""

PEOPLE = _words("sister brother neighbour teacher manager doctor cousin friend uncle aunt partner daughter")
"""Who did it."""

TIMES: tuple[tuple[str, str], ...] = (
    ("yesterday", "a day ago"),
    ("last week", "a week ago"),
    ("last month", "a month ago"),
    ("last year", "a year ago"),
    ("last night", "late last evening"),
    ("this morning", "early today"),
    ("on Monday", "last Monday"),
    ("on Friday", "last Friday"),
    ("in spring", "during spring"),
    ("in summer", "during summer"),
    ("in autumn", "during autumn"),
    ("in winter", "during winter"),
)
"""When, each in two wordings."""

OPENERS: dict[Formality, tuple[str, ...]] = {
    "informal": (
        *("Honestly,", "Listen,", "No joke,", "Real talk,", "Turns out that", "Gotta admit that"),
        *("Not gonna lie here,", "Take it from me,"),
    ),
    "formal": (
        *("Evidently,", "Indeed,", "In truth,", "In essence,", "It appears that", "One observes that"),
        *("It is evident that", "I must allow that"),
    ),
}

AFFIRMING: dict[Formality, tuple[str, ...]] = {
    "informal": ("super", "totally", "seriously", "properly", "mega", "massively"),
    "formal": ("rather", "notably", "decidedly", "markedly", "most", "singularly"),
}
"""Before an evaluation that means what it says."""

NEGATING: dict[Formality, tuple[str, ...]] = {
    "informal": ("not one bit", "so totally not", "nowhere near", "so not"),
    "formal": ("by no means", "in no respect", "assuredly not", "far from"),
}
"""Before an evaluation that means the opposite: "nowhere near awesome" is negative."""

EVALUATIONS: dict[str, dict[tuple[Formality, Sentiment], tuple[str, ...]]] = {
    "quality": {
        ("informal", "negative"): ("lousy", "rubbish", "crummy", "shambolic"),
        ("formal", "negative"): ("unfit", "wanting", "feeble", "inferior"),
        ("informal", "positive"): ("awesome", "top-notch", "cracking", "fab"),
        ("formal", "positive"): ("superb", "excellent", "splendid", "fine"),
    },
    "enjoyment": {
        ("informal", "negative"): ("sucky", "snoozy", "yawnsome", "tacky"),
        ("formal", "negative"): ("vapid", "dreary", "tiresome", "irksome"),
        ("informal", "positive"): ("groovy", "feel-good", "smashing", "zingy"),
        ("formal", "positive"): ("genial", "agreeable", "charming", "joyous"),
    },
    "impression": {
        ("informal", "negative"): ("blah", "so-so", "nothingy", "ho-hum"),
        ("formal", "negative"): ("drab", "trite", "mediocre", "insipid"),
        ("informal", "positive"): ("epic", "mind-blowing", "wicked", "killer"),
        ("formal", "positive"): ("grand", "magnificent", "regal", "stately"),
    },
    "workmanship": {
        ("informal", "negative"): ("dodgy", "slapdash", "half-baked", "sloppy"),
        ("formal", "negative"): ("crude", "careless", "defective", "flawed"),
        ("informal", "positive"): ("slick", "spot-on", "nifty", "rock-solid"),
        ("formal", "positive"): ("sound", "refined", "adroit", "meticulous"),
    },
}
"""Dimension of the judgement -> how it is worded, four words for each formality and sentiment."""

VERDICTS: dict[str, dict[tuple[Formality, Sentiment], tuple[str, ...]]] = {
    "repeat": {
        ("informal", "negative"): (
            *("ain't ever doing that again", "won't be back for more"),
            *("is so done with it", "wouldn't go again for anything"),
        ),
        ("formal", "negative"): (
            *("intends never to repeat it", "will not seek it again"),
            *("is loath to try it", "would refuse a further occasion"),
        ),
        ("informal", "positive"): (
            *("can't wait for another go", "is totally up for more"),
            *("wants another round right now", "is itching to go again"),
        ),
        ("formal", "positive"): (
            *("would be glad of another", "hopes to enjoy it again"),
            *("would accept a further chance", "desires to do so again"),
        ),
    },
    "recommend": {
        ("informal", "negative"): (
            *("tells everybody to skip it", "keeps moaning on about it"),
            *("won't quit griping about it", "gives it two thumbs down"),
        ),
        ("formal", "negative"): (
            *("advises others to avoid it", "speaks most harshly of it"),
            *("warns all others against it", "has condemned it at length"),
        ),
        ("informal", "positive"): (
            *("tells everybody to grab it", "keeps raving on about it"),
            *("won't stop gushing about it", "gives it two thumbs up"),
        ),
        ("formal", "positive"): (
            *("advises others to choose it", "speaks most warmly of it"),
            *("urges all others towards it", "has praised it at length"),
        ),
    },
    "cost": {
        ("informal", "negative"): (
            *("reckons it's a total rip-off", "says it's cash flushed away"),
            *("got ripped off big time", "wants the darn cash back"),
        ),
        ("formal", "negative"): (
            *("regards the cost as excessive", "thinks the sum poorly spent"),
            *("deems the price too high", "laments the sum it cost"),
        ),
        ("informal", "positive"): (
            *("reckons it's worth every penny", "says it's a total bargain"),
            *("figures it's a real steal", "would blow twice the cash"),
        ),
        ("formal", "positive"): (
            *("regards the cost as warranted", "thinks the sum well spent"),
            *("deems the price quite fair", "would gladly pay it twice"),
        ),
    },
    "mood": {
        ("informal", "negative"): (
            *("came away totally bummed out", "was grumpy the whole time"),
            *("is still in a strop", "got the hump big time"),
        ),
        ("formal", "negative"): (
            *("departed in very low spirits", "was vexed at every moment"),
            *("is yet ill at ease", "was left in ill humour"),
        ),
        ("informal", "positive"): (
            *("came away grinning like crazy", "was buzzing the whole time"),
            *("is still over the moon", "got a kick from it"),
        ),
        ("formal", "positive"): (
            *("departed in very high spirits", "was content at every moment"),
            *("is yet in fine humour", "took joy in it all"),
        ),
    },
}
"""What came of it -> how it is worded, four phrases of five words for each formality and sentiment."""
