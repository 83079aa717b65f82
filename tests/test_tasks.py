"""What each task asks and answers, against brute force over a data set made by hand."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import timelines_made
from hypothesis import given
from hypothesis import strategies as st

from user_llm.data.features import KNOWN
from user_llm.data.tasks import (
    OF_TIMELINES,
    FavoriteCategory,
    FutureFavorite,
    NextItem,
    Question,
    RatingPrediction,
    ReviewGeneration,
    corpus,
    history_text,
    practice,
    summary_text,
)

EVENTS = 40


@pytest.fixture(scope="module")
def data():
    return timelines_made.dataset(timelines_made.lengths_to_items([10, 1, 29]))


def test_next_item_asks_for_the_title_of_the_target(data):
    task = NextItem(data, noun="book")
    assert task.ask(np.arange(3), 3) == Question("The next book:", timelines_made.title(3))
    assert NextItem(data).ask(np.arange(0), 39).prompt == "The next film:"
    assert task.fits(np.arange(EVENTS)).all()
    assert task.candidates() == tuple(timelines_made.title(i) for i in range(EVENTS))


def test_an_item_without_a_title_is_called_by_the_noun(data):
    items = replace(data.items, titles=("",) * len(data.items.titles))
    untitled = replace(data, items=items)
    for task in (RatingPrediction, ReviewGeneration):
        asked = [task(x, noun="product").ask(np.arange(3), 3).prompt for x in (data, untitled)]
        assert asked[1] == asked[0].replace(timelines_made.title(3), "a product")
        assert timelines_made.title(3) in asked[0]


@given(st.lists(st.integers(0, EVENTS - 1), max_size=12), st.integers(0, EVENTS - 1))
def test_favorite_category_is_the_most_frequent_and_of_equals_the_last_seen(data, history, target):
    task = FavoriteCategory(data)
    said = task.ask(np.array(history, np.int64), target)
    assert said.prompt == "The favorite genre:"
    genres = [timelines_made.GENRES[event % 5] for event in history]
    counts = Counter(g for event in genres for g in event)
    best = {g for g in counts if counts[g] == max(counts.values())}
    newest = next((event for event in reversed(genres) if best & set(event)), ())
    assert said.answer in (best & set(newest) or {""})
    assert said.answer in {*task.candidates(), ""}


def test_a_tie_of_categories_goes_to_the_most_recent(data):
    task = FavoriteCategory(data)
    drama, action = 1, 3  # item % 5 decides the genres
    assert task.favorite(np.array([drama, action])) == "Action"
    assert task.favorite(np.array([action, drama])) == "Drama"
    assert task.favorite(np.array([drama, drama, action])) == "Drama"
    assert task.favorite(np.array([action, drama, action, drama, 0, 5])) == "Drama"
    assert task.candidates() == ("Action", "Comedy", "Drama")


def test_the_favorite_does_not_depend_on_the_target(data):
    task = FavoriteCategory(data)
    assert len({task.ask(np.arange(7), target) for target in range(7, EVENTS)}) == 1


@given(st.lists(st.integers(1, 25), min_size=1, max_size=5), st.integers(0, 9))
def test_a_future_favorite_is_that_of_the_next_events_where_they_are_known(lengths, hidden):
    data = timelines_made.dataset(timelines_made.lengths_to_items(lengths))
    stops = np.maximum(data.offsets[1:] - hidden, data.offsets[:-1])
    task = FutureFavorite(data, stops=stops)
    events = np.arange(len(data.item))
    for target, fits in zip(events.tolist(), task.fits(events).tolist(), strict=True):
        user = np.flatnonzero(data.offsets[:-1] <= target)[-1]
        assert fits == (target + 10 <= stops[user])
        if fits:
            said = task.ask(np.arange(data.offsets[user], target), target)
            assert said.answer == FavoriteCategory(data).favorite(events[target : target + 10])


def test_rating_prediction_asks_for_the_stars_of_the_target(data):
    task = RatingPrediction(data)
    assert task.ask(np.arange(4), 4) == Question("The stars for Film 4 of many:", "5")
    assert task.candidates() == ("1", "2", "3", "4", "5")
    unrated = replace(data, ratings=np.where(np.arange(EVENTS) % 2, np.nan, 3.5))
    np.testing.assert_array_equal(
        RatingPrediction(unrated).fits(np.arange(EVENTS)), np.arange(EVENTS) % 2 == 0
    )
    assert RatingPrediction(unrated).candidates() == ("3.5",)


def test_a_summary_counts_and_names_the_newest(data):
    assert summary_text(data, np.arange(1, 6)) == (
        "5 seen; mostly Drama 2, Comedy 2, Action 2; 3.0 stars on average; "
        "lately Film 3 of many, Film 4 of many, Film 5 of many\n"
    )
    bare = replace(data, ratings=None)
    assert summary_text(bare, np.array([0])) == "1 seen; lately Film 0 of many\n"
    assert summary_text(data, np.arange(0)) == ""


def test_review_generation_gives_title_and_stars_and_asks_for_the_words(data):
    task = ReviewGeneration(data)
    assert task.ask(np.arange(4), 4) == Question(
        "Review of Film 4 of many (5 stars):", "note 4 ends"
    )
    np.testing.assert_array_equal(task.fits(np.arange(EVENTS)), np.arange(EVENTS) % 3 > 0)
    assert task.candidates() == ()


def test_a_data_set_without_reviews_fits_no_review():
    data = timelines_made.dataset([[0, 1, 2]])
    bare = replace(data, reviews=None, ratings=None)
    assert not ReviewGeneration(bare).fits(np.arange(3)).any()
    assert not RatingPrediction(bare).fits(np.arange(3)).any()
    assert RatingPrediction(bare).candidates() == ()
    assert (
        history_text(bare, np.array([1, 2]))
        == "Film 1 of many (Drama)\nFilm 2 of many (Comedy, Drama)\n"
    )
    assert len(corpus(bare, np.arange(3))) == 3


def test_a_history_in_words_tells_each_event_once_and_reviews_only_if_asked(data):
    events = np.array([1, 2, 4])
    lines = history_text(data, events).splitlines()
    assert lines == [
        "Film 1 of many (Drama, 2)",
        "Film 2 of many (Comedy, Drama, 3)",
        "Film 4 of many (Action, Comedy, 5)",
    ]
    told = history_text(data, events, reviews=True).splitlines()
    assert told == [f"{line}: note {e} ends" for line, e in zip(lines, events, strict=True)]
    assert history_text(data, np.arange(0)) == ""


def test_what_is_not_known_is_not_told(data):
    titles, genres = list(data.items.titles), list(data.items.genres)
    titles[data.item[2]], genres[data.item[2]] = "", ()
    ratings = data.ratings.copy()
    ratings[[1, 2]] = np.nan
    items = replace(data.items, titles=tuple(titles), genres=tuple(genres))
    bare, events = replace(data, items=items, ratings=ratings), np.array([1, 2])
    assert history_text(bare, events, noun="book") == "Film 1 of many (Drama)\na book\n"
    told = summary_text(bare, events, noun="book")
    assert told == "2 seen; mostly Drama 1; lately Film 1 of many, a book\n"
    assert ReviewGeneration(bare).ask(events, 1).prompt == "Review of Film 1 of many:"


def test_the_corpus_holds_every_item_and_no_review_outside_of_the_events(data):
    events = np.array([0, 1, 2, 5, 9, 30])
    texts = corpus(data, events)
    reviews = {e: timelines_made.review(e) for e in range(EVENTS) if timelines_made.review(e)}
    told = {e for e, review in reviews.items() if any(review in text for text in texts)}
    assert told == {1, 2, 5}
    for i in range(EVENTS):
        genres = ", ".join(timelines_made.GENRES[i % 5])
        assert f"{timelines_made.title(i)} ({genres}) The plot of {i}." in texts
    assert len(texts) == EVENTS + 3


def test_practice_lists_every_answer_once_and_asks_as_often_about_the_given_events(data):
    events = np.arange(3, 33)
    questions = practice([NextItem(data)], data, events, seed=0)
    titles = [timelines_made.title(i) for i in range(EVENTS)]
    assert {q.prompt for q in questions} == {"The next film:"}
    assert [q.answer for q in questions[:EVENTS]] == titles
    asked = [q.answer for q in questions[EVENTS:]]
    assert sorted(asked) == sorted(titles[3:33])  # as many as there are, up to the listed
    few = practice([FavoriteCategory(data)], data, events, seed=0)
    assert [q.answer for q in few[:3]] == ["Action", "Comedy", "Drama"]
    assert len(few) == 6


def test_practice_tells_no_review_outside_of_the_given_events(data):
    events = np.array([1, 2, 3, 4])
    questions = practice([ReviewGeneration(data)], data, events, seed=1)
    assert sorted(q.answer for q in questions) == [f"note {e} ends" for e in (1, 2, 4)]


def test_practice_is_a_function_of_its_seed(data):
    tasks = [task(data) for task in OF_TIMELINES]
    first, same, other = (practice(tasks, data, np.arange(EVENTS), seed=s) for s in (0, 0, 1))
    assert first == same != other
    assert practice(tasks, data, np.arange(0), seed=0) == []


def test_items_are_read_by_their_encoded_id(data):
    assert data.item[7] == KNOWN + 7
