"""What the synthetic world says: titles and plots of its films, and reviews in a personal style."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


class Lore(NamedTuple):
    """What the titles and plots of one genre are made of."""

    nouns: tuple[str, ...]  # the last word of a title
    heroes: tuple[str, ...]
    places: tuple[str, ...]
    quests: tuple[str, ...]


class Mood(NamedTuple):
    """What a rating sounds like."""

    adjectives: tuple[str, ...]
    clauses: tuple[str, ...]  # one to five words, so that any length of review can be met


LORE = {
    "adventure": Lore(
        _words("River Compass Voyage Summit Jungle Lagoon Expedition Trail Island Map"),
        ("a stubborn guide", "a young sailor", "a retired climber", "twin explorers"),
        ("on an unmapped island", "in the high passes", "in a drowned valley"),
        ("find a lost caravan", "cross the ice before spring", "outrun a rival crew"),
    ),
    "comedy": Lore(
        _words("Picnic Wedding Parrot Umbrella Holiday Waiter Trousers Cousin Bakery Goose"),
        ("a clumsy postman", "a vain chef", "two rival neighbours", "an honest liar"),
        ("at a seaside hotel", "in a tiny village", "in a crowded flat"),
        ("hide a borrowed goat", "win a baking contest", "survive a family reunion"),
    ),
    "crime": Lore(
        _words("Heist Alibi Ledger Alley Verdict Ransom Vault Witness Syndicate Getaway"),
        ("an ageing safecracker", "a crooked banker", "a rookie detective", "a loyal driver"),
        ("in a harbour city", "in the night courts", "in a gambling den"),
        ("rob one last bank", "bring down a syndicate", "protect the only witness"),
    ),
    "drama": Lore(
        _words("Letter Autumn Daughter Orchard Silence Window Mother Farewell Inheritance Kitchen"),
        ("a widowed teacher", "an estranged son", "a tired nurse", "two sisters"),
        ("in a mill town", "in an old farmhouse", "in a northern suburb"),
        ("forgive an old betrayal", "save the family farm", "say a late goodbye"),
    ),
    "fantasy": Lore(
        _words("Dragon Crown Sorcerer Throne Griffin Spell Amulet Oracle Unicorn Realm"),
        ("an orphan mage", "an exiled queen", "a reluctant knight", "a talking fox"),
        ("in a floating kingdom", "in the elder forest", "in a city of glass"),
        ("break an ancient curse", "wake the last dragon", "return a stolen crown"),
    ),
    "horror": Lore(
        _words("Cellar Scarecrow Grave Scream Asylum Coffin Crypt Mirror Fog Doll"),
        ("a night watchman", "a sleepless couple", "a doubting priest", "five students"),
        ("in an empty asylum", "in a house on the moor", "in a flooded crypt"),
        ("survive until dawn", "bury what came back", "learn who is knocking"),
    ),
    "musical": Lore(
        _words("Melody Chorus Piano Ballroom Serenade Waltz Encore Carousel Trumpet Tango"),
        ("a shy soprano", "a jazz pianist", "a street dancer", "a failing troupe"),
        ("in a travelling theatre", "in a faded ballroom", "at the old radio hall"),
        ("stage one great show", "write the perfect song", "save the theatre"),
    ),
    "mystery": Lore(
        _words("Riddle Lantern Key Cipher Clue Portrait Footprint Manor Locket Secret"),
        ("a blind librarian", "a curious gardener", "a village doctor", "a retired inspector"),
        ("in a locked manor", "on a snowbound train", "at a quiet college"),
        ("name a masked guest", "read a coded diary", "explain an empty room"),
    ),
    "romance": Lore(
        _words("Kiss Rose Heart Valentine Garden Promise Moonlight Ribbon Sweetheart Honeymoon"),
        ("a hopeful florist", "two pen friends", "a travelling tailor", "a runaway bride"),
        ("in a lakeside town", "in a rainy city", "at a vineyard in June"),
        ("find a first love again", "choose between two letters", "dare to say yes"),
    ),
    "scifi": Lore(
        _words("Orbit Android Galaxy Comet Signal Colony Nebula Reactor Starship Clone"),
        ("a stranded pilot", "a curious android", "a colony engineer", "the last astronomer"),
        ("on a dying space station", "on the moons of Saturn", "in a buried laboratory"),
        ("answer a distant signal", "restart a failing sun", "outwit a thinking machine"),
    ),
    "war": Lore(
        _words("Trench Battalion Bridge Sergeant Siege Flag Armistice Bunker Regiment Medic"),
        ("a field medic", "a young lieutenant", "a captured pilot", "three brothers"),
        ("in a besieged town", "on the eastern front", "in a mined harbour"),
        ("hold a broken bridge", "carry a message home", "end a hopeless siege"),
    ),
    "western": Lore(
        _words("Canyon Saddle Sheriff Stagecoach Prairie Outlaw Mustang Saloon Revolver Ranch"),
        ("a weary sheriff", "a silent gunslinger", "a stubborn rancher", "a preacher's daughter"),
        ("in a dusty frontier town", "in the red canyons", "on a dry prairie"),
        ("find a stolen herd", "face an old outlaw", "guard the last stagecoach"),
    ),
}
ADJECTIVES = _words(
    "Silver Golden Crimson Hidden Broken Distant Wild Gentle Burning Frozen Velvet "
    "Hollow Lonely Restless Emerald Bitter Quiet Forgotten Stolen Painted Midnight Winter "
    "Wandering Scarlet"
)
NUMERALS = ("", " II", " III", " IV")

ADVERBS = _words(
    "really truly utterly quite rather absolutely simply honestly totally frankly oddly purely"
)
ASPECTS = _words("acting music pacing ending dialogue camerawork story humour casting editing")
MOODS = (  # of the ratings 1 and 2, of 3, of 4 and 5
    Mood(
        _words("dull weak clumsy tedious shallow lifeless messy bland tiresome forgettable"),
        (
            "alas",
            "never again",
            "I nearly left",
            "nothing made much sense",
            "two hours I regret",
            "not for me",
            "a wasted evening",
            "I expected far more",
        ),
    ),
    Mood(
        _words("fine decent passable uneven ordinary watchable modest familiar average mixed"),
        (
            "perhaps",
            "nothing special",
            "good in parts",
            "worth a rainy evening",
            "I have seen better",
            "neither here nor there",
            "a fair try",
            "it passes the time",
        ),
    ),
    Mood(
        _words("superb charming brilliant moving gorgeous clever delightful gripping tender fun"),
        (
            "bravo",
            "loved it",
            "I was moved",
            "every scene just works",
            "I would watch it again",
            "a perfect evening",
            "worth every minute",
            "tell all your friends",
        ),
    ),
)
ENDINGS = (".", "!", "!!", "!!!", "...")
HABIT = 0.8  # how often a reviewer uses a favourite word


class Style(NamedTuple):
    """How one user writes; favourites are places in the lists above."""

    words: int  # of a typical review
    ending: int
    names_title: float  # how often, rather than the genre
    adverb: int
    adjective: int  # of every mood
    aspect: int


def draw_style(rng: np.random.Generator) -> Style:
    """A way of writing."""
    sizes = len(ADVERBS), len(MOODS[0].adjectives), len(ASPECTS)
    return Style(
        int(rng.integers(5, 20)),
        int(rng.integers(len(ENDINGS))),
        rng.random(),
        *(int(rng.integers(size)) for size in sizes),
    )


def write_plot(genres: Sequence[str], hero: str, place: str, quest: str, part: int) -> str:
    """Two sentences about a film, the `part`-th of its series from 0."""
    where = f"Back {place}" if part else place[0].upper() + place[1:]
    article = "An" if genres[0][0] in "aeiou" else "A"
    also = f" with some {genres[1]}" if genres[1:] else ""
    return f"{where}, {hero} must {quest}. {article} {genres[0]} film{also}."


def _by_habit(
    favourite: int, number: int, chance: Float[np.ndarray, " n"]
) -> Int[np.ndarray, " n"]:
    """Places in a list of `number` words: the favourite in `HABIT` of the cases, else any."""
    other = (chance - HABIT) / (1 - HABIT) * number
    return np.where(chance < HABIT, favourite, other.astype(int))


def write_reviews(
    style: Style,
    titles: Sequence[str],
    genres: Sequence[str],
    ratings: Float[np.ndarray, " n"],
    chance: Float[np.ndarray, "n 7"],
) -> list[str]:
    """What a user of that style says of films, in 4 to 20 words each; `chance` is in [0, 1)."""
    number = len(MOODS[0].adjectives)
    columns = (
        (ratings > 2).astype(int) + (ratings > 3),
        _by_habit(style.adverb, len(ADVERBS), chance[:, 0]),
        _by_habit(style.adjective, number, chance[:, 1]),
        _by_habit(style.aspect, len(ASPECTS), chance[:, 2]),
        (chance[:, 3] * number).astype(int),
        chance[:, 4] < style.names_title,
        style.words - 1 + (chance[:, 5] * 3).astype(int),  # give or take one
        (chance[:, 6] * len(MOODS[0].clauses)).astype(int),
    )
    reviews = []
    for title, genre, mood, adverb, adjective, aspect, other, names_title, words, start in zip(
        titles, genres, *(column.tolist() for column in columns), strict=True
    ):
        adjectives, clauses = MOODS[mood]
        if names_title:
            text = f"{title} is {ADVERBS[adverb]} {adjectives[adjective]}"
        else:
            text = f"{ADVERBS[adverb].capitalize()} {adjectives[adjective]} {genre} film"
        words -= text.count(" ") + 1
        about = f"the {ASPECTS[aspect]} is {adjectives[other]}"
        for clause in (about, *clauses[start:], *clauses[:start]):
            size = clause.count(" ") + 1
            if size <= words:
                text, words = f"{text}, {clause}", words - size
        reviews.append(text + ENDINGS[style.ending])
    return reviews
