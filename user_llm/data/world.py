"""The embedded synthetic world: users with drifting tastes who watch, rate and review films.

The distribution of every event is known, so the best score that any model can reach is known too.
In `CURIOSITY` of all events a user picks any film that they may watch next; else they draw from a
softmax over these films,

    logit(film) = taste * match(user, film, time) + quality * quality(film) + pull(user, film),

where `match` is the user's taste along the film's genres, an Ornstein-Uhlenbeck process in time,
and `pull` leads to the sequels of what the user has lately watched. No film is watched twice, and
no sequel before its predecessor. Every user is a function of the films, the seed and their number.

So it is among `fans`. `critics` watch what everyone watches, whatever their taste, of so many films
that each is rare. Their stars tell a film's quality, and how lenient they are: of a few films which
of the two it is shows in what others gave the same ones.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from user_llm.data.world_words import (
    ADJECTIVES,
    LORE,
    NUMERALS,
    Style,
    draw_style,
    write_plot,
    write_reviews,
)

GENRES = tuple(LORE)
EVENTS = (30, 90)  # of the shortest and of the longest timeline
CURIOSITY = 0.15  # keeps the best possible score well below 1
PULL, PULL_DECAY = 5.5, 0.6  # of a sequel when it opens, and what an event leaves of it
DAY, HOUR = 86_400, 3_600  # seconds
EPOCH = 1_640_995_200  # 2022-01-01, when the first users arrive
CHUNK = 256  # users simulated at a time


class Manners(NamedTuple):
    """How users choose and rate; what a standard deviation adds to a logit or to the stars."""

    films: int  # to choose from
    taste: float
    quality: float
    drift_days: float  # in which the correlation of a taste with its past falls to 1 / e
    stars: float  # of the average film
    star_bias: float  # of a user
    star_quality: float
    star_match: float
    star_noise: float


MANNERS = {
    # Quality counts little, so that popularity says little about the next film.
    "fans": Manners(400, 2.0, 0.2, 100.0, 2.6, 0.5, 0.5, 0.5, 0.5),
    "critics": Manners(2880, 0.0, 0.2, 400.0, 3.0, 1.0, 1.2, 0.3, 0.2),
}


class Films(NamedTuple):
    """The catalogue by column."""

    titles: list[str]
    genres: list[list[str]]
    plots: list[str]
    sequel: Int[np.ndarray, " items"]  # -1: none
    is_first: Bool[np.ndarray, " items"]  # of its series
    direction: Float[np.ndarray, "items genres"]  # unit vectors
    quality: Float[np.ndarray, " items"]


class Draws(NamedTuple):
    """All the randomness of one user, drawn before anything is watched."""

    length: int
    bias: float
    style: Style
    timestamps: Int[np.ndarray, " events"]
    taste_noise: Float[np.ndarray, "events genres"]
    choice: Float[np.ndarray, " events"]  # in [0, 1)
    rating_noise: Float[np.ndarray, " events"]
    review: Float[np.ndarray, "events 7"]  # in [0, 1)


class Viewings(NamedTuple):
    """What some users watched, and the distribution that one event of each was drawn from."""

    items: Int[np.ndarray, "users events"]
    match: Float[np.ndarray, "users events"]
    probabilities: Float[np.ndarray, "users items"]


@dataclass(frozen=True)
class World:
    """A world of users and films; the same arguments give the same world.

    Raises:
      ValueError: a size is out of its range, or the seed is negative.
    """

    users: int = 2000
    num_items: int = 400
    seed: int = 0
    kind: str = "fans"  # or critics

    def __post_init__(self):
        ranges = {
            "users": (1, 10**7),
            "num_items": (2 * EVENTS[1], len(GENRES) * len(ADJECTIVES) * len(LORE["war"].nouns)),
            "seed": (0, 2**63 - 1),
        }
        wrong = [
            f"{name}={getattr(self, name)} must lie in [{low}, {high}]"
            for name, (low, high) in ranges.items()
            if not low <= getattr(self, name) <= high
        ]
        if self.kind not in MANNERS:
            wrong.append(f"kind={self.kind!r} must be one of {', '.join(MANNERS)}")
        if wrong:
            raise ValueError("; ".join(wrong))

    def items(self) -> Iterator[dict[str, Any]]:
        """The films: `item`, `title`, one or two `genres`, and the plot as `text`."""
        films = self._films
        for i, (title, genres, plot) in enumerate(zip(*films[:3], strict=True)):
            yield {"item": f"i{i:04d}", "title": title, "genres": genres, "text": plot}

    def timelines(self) -> Iterator[dict[str, Any]]:
        """The users: `user` and, event by event, `item`, `timestamp`, `rating` and `review`.

        Timestamps are int64 seconds and rise strictly; ratings are float32, whole, from 1 to 5.
        """
        user = 0
        for draws, viewings in self._chunks():
            for draw, items, match in zip(draws, viewings.items, viewings.match, strict=True):
                items, ratings = items[: draw.length], self._ratings(draw, items, match)
                yield {
                    "user": self._name(user),
                    "item": [f"i{i:04d}" for i in items.tolist()],
                    "timestamp": draw.timestamps[: draw.length],
                    "rating": ratings,
                    "review": self._reviews(draw, items, ratings),
                }
                user += 1

    def next_item_probabilities(self, user: int, position: int) -> Float[np.ndarray, " items"]:
        """The distribution that the event at `position` of a user's timeline was drawn from.

        Raises:
          ValueError: there is no such user or no such event.
        """
        if not 0 <= user < self.users:
            raise ValueError(f"user={user} must lie in [0, {self.users})")
        draw = self._draw(user)
        if not 0 <= position < draw.length:
            raise ValueError(f"position={position} must lie in [0, {draw.length}) for user {user}")
        return self._simulate([draw], np.array([position])).probabilities[0]

    def ranks(self) -> dict[str, dict[str, int]]:
        """Each user's rank, from 1, of their last film by the truth (`oracle`) and by `popularity`.

        Both rank the whole catalogue without the films already seen; popularity counts all events
        but the last ones. No recommender can expect better ranks than the oracle's.
        """
        popular, chunks = np.zeros(self.num_items), list(self._chunks())
        for draws, viewings in chunks:
            for draw, items in zip(draws, viewings.items, strict=True):
                popular[items[: draw.length - 1]] += 1
        ranks: dict[str, dict[str, int]] = {"oracle": {}, "popularity": {}}
        names = map(self._name, range(self.users))
        for draws, viewings in chunks:
            for draw, items, truth in zip(
                draws, viewings.items, viewings.probabilities, strict=True
            ):
                counts = popular.copy()
                counts[items[: draw.length - 1]] = -1
                target, user = items[draw.length - 1], next(names)
                for name, scores in (("oracle", truth), ("popularity", counts)):
                    ranks[name][user] = int(np.sum(scores >= scores[target]))
        return ranks

    def _name(self, user: int) -> str:
        return f"u{user:04d}"

    @cached_property
    def _films(self) -> Films:
        rng = np.random.default_rng((self.seed, 0))
        names = {
            genre: rng.permutation([f"{a} {noun}" for a in ADJECTIVES for noun in lore.nouns])
            for genre, lore in LORE.items()
        }
        titles, genres, plots, sequel, is_first = [], [], [], [], []
        series = 0
        while len(titles) < self.num_items:
            genre, turn = GENRES[series % len(GENRES)], series // len(GENRES)
            other = str(rng.choice([g for g in GENRES if g != genre]))
            kinds = [genre, other] if rng.random() < 0.5 else [genre]
            hero, place = rng.choice(LORE[genre].heroes), rng.choice(LORE[genre].places)
            parts = min(int(rng.integers(1, 5)), self.num_items - len(titles))
            for part in range(parts):
                sequel.append(len(titles) + 1 if part + 1 < parts else -1)
                is_first.append(part == 0)
                titles.append(f"{names[genre][turn]}{NUMERALS[part]}")
                genres.append(kinds)
                plots.append(write_plot(kinds, hero, place, rng.choice(LORE[genre].quests), part))
            series += 1
        direction = np.array([[genre in kinds for genre in GENRES] for kinds in genres], float)
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        return Films(
            titles,
            genres,
            plots,
            np.array(sequel),
            np.array(is_first),
            direction,
            rng.standard_normal(self.num_items),
        )

    def _chunks(self) -> Iterator[tuple[list[Draws], Viewings]]:
        for start in range(0, self.users, CHUNK):
            draws = [self._draw(u) for u in range(start, min(start + CHUNK, self.users))]
            yield draws, self._simulate(draws, np.array([draw.length - 1 for draw in draws]))

    def _draw(self, user: int) -> Draws:
        rng = np.random.default_rng((self.seed, 1, user))
        most = EVENTS[1]
        session = np.repeat(np.arange(most), rng.integers(1, 4, most))[:most]  # of each event
        slot = np.arange(most) - np.searchsorted(session, session)  # within its session
        day = rng.integers(365) + np.cumsum(rng.geometric(0.25, most))[session]
        evening = (18 + 2 * slot) * HOUR + rng.integers(2 * HOUR, size=most)
        return Draws(
            length=int(rng.integers(EVENTS[0], most + 1)),
            bias=rng.standard_normal(),
            style=draw_style(rng),
            timestamps=EPOCH + day * DAY + evening,
            taste_noise=rng.standard_normal((most, len(GENRES))),
            choice=rng.random(most),
            rating_noise=rng.standard_normal(most),
            review=rng.random((most, 7)),
        )

    def _simulate(self, draws: list[Draws], kept: Int[np.ndarray, " users"]) -> Viewings:
        """All users, event by event up to `kept`, whose distribution is kept."""
        films, rows, manners = self._films, np.arange(len(draws)), MANNERS[self.kind]
        choice = np.stack([draw.choice for draw in draws])
        tastes = np.stack([draw.taste_noise for draw in draws])  # [U, T, G]
        times = np.stack([draw.timestamps for draw in draws])
        memory = np.exp(-np.diff(times, axis=1) / (manners.drift_days * DAY))[
            ..., None
        ]  # [U, T-1, 1]
        for t in range(1, choice.shape[1]):  # N(0, 1) at every event
            past = memory[:, t - 1]
            tastes[:, t] = past * tastes[:, t - 1] + np.sqrt(1 - past**2) * tastes[:, t]
        matches = tastes @ films.direction.T  # [U, T, I]
        pull = np.tile(np.where(films.is_first, 0.0, -np.inf), (len(draws), 1))  # [U, I]
        quality = manners.quality * films.quality
        items = np.zeros(choice.shape, np.int64)
        probabilities = np.zeros(pull.shape)
        for t in range(kept.max() + 1):
            allowed = np.isfinite(pull)
            liked = np.exp(manners.taste * matches[:, t] + quality + pull)  # far from any overflow
            p = (1 - CURIOSITY) / liked.sum(axis=1, keepdims=True) * liked
            p += CURIOSITY / allowed.sum(axis=1, keepdims=True) * allowed
            edges = np.cumsum(p, axis=1)
            items[:, t] = watched = np.argmax(edges > choice[:, t, None] * edges[:, -1:], axis=1)
            probabilities[kept == t] = p[kept == t]
            pull *= PULL_DECAY
            pull[rows, watched] = -np.inf
            follows = films.sequel[watched] >= 0
            pull[rows[follows], films.sequel[watched[follows]]] = PULL
        match = np.take_along_axis(matches, items[..., None], axis=2)[..., 0]
        return Viewings(items, match, probabilities)

    def _ratings(self, draw: Draws, items: np.ndarray, match: np.ndarray) -> np.ndarray:
        manners = MANNERS[self.kind]
        score = manners.stars + manners.star_bias * draw.bias
        score += manners.star_quality * self._films.quality[items]
        score += manners.star_match * match + manners.star_noise * draw.rating_noise
        return np.clip(np.round(score[: draw.length]), 1, 5).astype(np.float32)

    def _reviews(self, draw: Draws, items: np.ndarray, ratings: np.ndarray) -> list[str]:
        titles = [self._films.titles[i] for i in items]
        genres = [self._films.genres[i][0] for i in items]
        return write_reviews(draw.style, titles, genres, ratings, draw.review[: draw.length])
