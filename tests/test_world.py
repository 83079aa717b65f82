"""The synthetic world: it is what it says it is, and it is worth learning from."""

import time
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from user_llm.data.world import EVENTS, GENRES, World
from user_llm.data.world_words import MOODS
from user_llm.metrics import Ranking


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture(scope="module")
def timelines(world):
    return list(world.timelines())


@pytest.fixture(scope="module")
def scores(world):
    return figures(world)


def figures(world):
    ranks = {name: np.array(list(of.values())) for name, of in world.ranks().items()}
    return {name: Ranking.from_ranks(rank).compute() for name, rank in ranks.items()}


def indices(timeline):
    return np.array([int(item[1:]) for item in timeline["item"]])


def assert_same(one, other):
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], other[key])


def test_same_seed_same_world_whatever_the_number_of_users(timelines):
    again = World(users=200)
    for one, other in zip(timelines[:200], again.timelines(), strict=True):
        assert_same(one, other)
    assert list(again.items()) == list(World(users=1).items())


def test_another_seed_is_another_world(timelines):
    other = World(users=1, seed=1)
    assert next(other.timelines())["item"] != timelines[0]["item"]
    assert next(other.items()) != next(World().items())


def test_timelines_are_well_formed(timelines):
    low, high = EVENTS
    lengths = {len(timeline["item"]) for timeline in timelines}
    assert min(lengths) == low and max(lengths) == high
    for timeline in timelines:
        n = len(timeline["item"])
        assert len(set(timeline["item"])) == n  # no film twice
        assert timeline["timestamp"].dtype == np.int64 and timeline["timestamp"].shape == (n,)
        assert np.all(np.diff(timeline["timestamp"]) > 0)
        assert timeline["rating"].dtype == np.float32 and len(timeline["review"]) == n
        assert set(timeline["rating"]) <= {1, 2, 3, 4, 5}
        assert all(4 <= len(review.split()) <= 20 for review in timeline["review"])
    assert len({timeline["user"] for timeline in timelines}) == len(timelines)


def test_titles_are_short_and_distinct_and_sequels_share_their_words(world):
    films = list(world.items())
    titles = [film["title"] for film in films]
    assert len(set(titles)) == len(titles) == world.num_items
    assert {len(title.split()) for title in titles} == {2, 3}
    for before, film in pairwise(films):
        if film["title"].endswith(" II"):
            assert before["title"] == film["title"].removesuffix(" II")
            assert before["genres"] == film["genres"]
    assert all(set(film["genres"]) <= set(GENRES) and film["text"] for film in films)


def test_sequels_follow_their_predecessors(world, timelines):
    titles = [film["title"] for film in world.items()]
    for timeline in timelines:
        seen = set()
        for i in indices(timeline):
            if titles[i].endswith(" II"):
                assert i - 1 in seen
            seen.add(i)


def test_probabilities_sum_to_one_and_are_zero_for_films_seen(world, timelines):
    for user, position in ((0, 0), (3, 17), (1999, 29)):
        probabilities = world.next_item_probabilities(user, position)
        seen = indices(timelines[user])[:position]
        assert probabilities.shape == (world.num_items,)
        assert np.all(probabilities[seen] == 0) and probabilities.min() == 0
        np.testing.assert_allclose(probabilities.sum(), 1, rtol=1e-12)


def test_events_are_drawn_from_the_stated_distribution(world, timelines):
    """By bins of probability, the number of films watched is the number expected (chi-square)."""
    rng = np.random.default_rng(0)
    edges = np.array([3e-3, 1e-2, 3e-2, 0.1, 0.3])
    expected, variance, observed = np.zeros((3, len(edges) + 1))
    for user, timeline in enumerate(timelines[:500]):
        position = int(rng.integers(len(timeline["item"])))
        p = world.next_item_probabilities(user, position)
        bins = np.searchsorted(edges, p)
        mass = np.bincount(bins, p, len(expected))
        expected += mass
        variance += mass * (1 - mass)
        observed[bins[indices(timeline)[position]]] += 1
    z = (observed - expected) / np.sqrt(variance)
    assert expected.min() > 10  # enough in every bin
    assert np.abs(z).max() < 3.5


def test_oracle_is_far_above_popularity(scores):
    oracle, popularity = scores["oracle"], scores["popularity"]
    assert 0.35 <= oracle["recall_at_1"] <= 0.5
    assert 0.55 <= oracle["recall_at_10"] <= 0.7
    assert oracle["recall_at_1"] < oracle["recall_at_5"] < oracle["recall_at_10"]
    assert oracle["recall_at_10"] > 8 * popularity["recall_at_10"]
    assert 0.03 <= popularity["recall_at_10"] <= 0.06


def test_oracle_agrees_with_the_probabilities_it_ranks_by(timelines):
    world = World(users=60)
    ranks = []
    for user, timeline in enumerate(timelines[:60]):
        watched = indices(timeline)
        order = np.argsort(-world.next_item_probabilities(user, len(watched) - 1))
        ranks.append(list(order).index(watched[-1]))
    ranks = np.array(ranks)
    assert list(world.ranks()["oracle"]) == [timeline["user"] for timeline in timelines[:60]]
    got = figures(world)["oracle"]
    assert got["recall_at_10"] == pytest.approx(np.mean(ranks < 10))
    gains = [1 / np.log2(rank + 2) if rank < 10 else 0 for rank in ranks]
    assert got["ndcg_at_10"] == pytest.approx(np.mean(gains))


def test_a_simple_recommender_finds_most_of_it_in_the_timelines(world, timelines, scores):
    """Transition counts and recent genres alone, with nothing of the world's inside."""
    films = list(world.items())
    has = np.array([[genre in film["genres"] for genre in GENRES] for film in films], float)
    has /= np.linalg.norm(has, axis=1, keepdims=True)
    watched = [indices(timeline) for timeline in timelines]
    lags = range(1, 6)
    follows = np.zeros((len(lags), world.num_items, world.num_items))
    for items in watched:
        for k, lag in enumerate(lags):
            np.add.at(follows[k], (items[: -1 - lag], items[lag:-1]), 1)
    follows /= follows.sum(axis=2, keepdims=True) + 5
    hits = []
    for *history, target in watched:
        history = np.array(history)[::-1]  # the latest first
        recent = np.exp(-np.arange(len(history)) / 20)
        by_genre = np.exp(7 * has @ (recent @ has[history]) / recent.sum())
        by_sequence = sum(0.8**k * follows[k, history[k]] for k in range(len(lags)))
        score = 0.3 * by_sequence + by_genre / by_genre.sum()
        score[history] = -1
        hits.append(np.sum(score >= score[target]) <= 10)
    assert np.mean(hits) > 0.75 * scores["oracle"]["recall_at_10"]


def test_favourite_genres_differ_across_users_and_drift(world, timelines):
    genres = [film["genres"] for film in world.items()]

    def favourite(items):
        return Counter(genre for i in items for genre in genres[i]).most_common(1)[0][0]

    whole = Counter(favourite(indices(timeline)) for timeline in timelines)
    assert set(whole) == set(GENRES)
    assert max(whole.values()) < 0.2 * len(timelines)
    stays = np.mean([favourite(indices(t)[:15]) == favourite(indices(t)[-15:]) for t in timelines])
    assert 0.15 < stays < 0.6


def test_taste_raises_ratings_and_the_reviews_say_so(timelines):
    ratings = np.concatenate([timeline["rating"] for timeline in timelines])
    assert np.all(np.bincount(ratings.astype(int), minlength=6)[1:] > 0.01 * len(ratings))
    for timeline in timelines[:50]:
        for rating, review in zip(timeline["rating"], timeline["review"], strict=True):
            mood = MOODS[int(rating > 2) + int(rating > 3)]
            assert any(adjective in review for adjective in mood.adjectives)


def test_style_is_recoverable_from_earlier_reviews(timelines):
    """A user's last review is nearest to the mean of their own earlier ones, among 100 users'."""
    some = timelines[:100]
    words = sorted({word for t in some for review in t["review"] for word in tokens(review)})
    place = {word: i for i, word in enumerate(words)}

    def features(review):
        counts = np.zeros(len(words) + 2)
        for word in tokens(review):
            counts[place[word]] = 1
        counts[-2:] = len(review.split()) / 4, review.count("!") + 2 * review.count("...")
        return counts

    centroids = np.array([np.mean([features(r) for r in t["review"][:-1]], axis=0) for t in some])
    last = np.array([features(t["review"][-1]) for t in some])
    distance = np.linalg.norm(last[:, None] - centroids, axis=-1)
    assert np.mean(distance.argmin(axis=1) == np.arange(len(some))) > 0.4  # by chance 0.01


def tokens(review):
    return review.lower().replace(",", "").rstrip("!.").split()


def test_two_thousand_users_take_seconds():
    start = time.process_time()  # what other processes take does not count
    assert sum(1 for _ in World(users=2000).timelines()) == 2000
    assert time.process_time() - start < 10


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match=r"users=0 .*; num_items=10 .*; seed=-1"):
        World(users=0, num_items=10, seed=-1)
    world = World(users=5)
    with pytest.raises(ValueError, match=r"user=5 must lie in \[0, 5\)"):
        world.next_item_probabilities(5, 0)
    with pytest.raises(ValueError, match="position=90"):
        world.next_item_probabilities(0, 90)


def test_critics_watch_alike_and_their_strictness_shows_beside_others_stars():
    """A few stars tell how lenient a critic is in what sets them apart, in themselves less."""
    world = World(users=300, kind="critics")
    films, timelines = list(world.items()), list(world.timelines())
    ratings = np.full((300, len(films)), np.nan)
    for user, timeline in enumerate(timelines):
        ratings[user, indices(timeline)] = timeline["rating"]
    deviation = ratings - np.nanmean(ratings, axis=0)

    def hidden(value):
        """The share of critics' leniency at later films that the mean of five does not foretell."""
        watched = [indices(timeline) for timeline in timelines]
        few = [value[user, own[:5]].mean() for user, own in enumerate(watched)]
        rest = [deviation[user, own[5:]].mean() for user, own in enumerate(watched)]
        return 1 - np.corrcoef(few, rest)[0, 1] ** 2

    assert hidden(deviation) < hidden(ratings) / 2
    of_genre = np.array([[genre in film["genres"] for genre in GENRES] for film in films], float)
    shares = [of_genre[indices(t)].mean(0) for t in timelines]
    fans = [of_genre[indices(t)].mean(0) for t in World(users=300).timelines()]
    assert np.std(shares, axis=0).mean() < 0.7 * np.std(fans, axis=0).mean()
    with pytest.raises(ValueError, match="kind='snobs' must be one of fans, critics"):
        World(kind="snobs")
