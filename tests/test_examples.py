"""An example shows a history, asks about the event after it, and shows nothing of its future."""

import numpy as np
import pytest
import timelines_made
from hypothesis import given, settings
from hypothesis import strategies as st

from user_llm.data.examples import Examples
from user_llm.data.features import KNOWN
from user_llm.data.tasks import (
    OF_TIMELINES,
    TASKS,
    FavoriteCategory,
    NextItem,
    ReviewGeneration,
    history_text,
)
from user_llm.data.text import Tokenizer
from user_llm.data.timelines import user_of
from user_llm.stages import fitting

NAMES = [task.name for task in OF_TIMELINES]
LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=4).filter(lambda n: max(n) > 1)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    words = [timelines_made.title(i) for i in range(40)] + [
        timelines_made.review(e) for e in range(40)
    ]
    words += ["The next film: Review of ( stars): The favorite genre: Drama, Action, Comedy"]
    return Tokenizer.train(words * 3, 500, tmp_path_factory.mktemp("tokenizer"))


def make(tokenizer, data, tasks, *, history=4, max_tokens=512, **told):
    """Every event with one before it as an example; a data set of which item = event."""
    events = np.arange(len(data.item))
    targets = events[~np.isin(events, data.offsets)]
    asked = {TASKS[name](data): share for name, share in tasks.items()}
    return Examples(
        data,
        targets[fitting(asked, targets)],
        asked,
        tokenizer,
        history=history,
        max_tokens=max_tokens,
        **told,
    )


def test_a_next_item_is_one_token_where_items_are_tokens(tokenizer):
    data = timelines_made.dataset([[3, 1, 4, 1, 5], [9, 2, 6]])
    source = make(tokenizer, data, {"next_item": 1.0}, first_item=500)
    rows = np.arange(len(source))
    batch, (prompt,) = source.batch(rows, rows), tokenizer.prompts(["The next film:"])
    for row, weights, target in zip(batch["tokens"], batch["weights"], source.targets, strict=True):
        there = [*prompt, 500 + data.item[target]]
        assert row.tolist() == there + [0] * (len(row) - len(there))
        assert np.flatnonzero(weights).tolist() == [len(prompt)]
    other = make(tokenizer, data, {"favorite_category": 1.0}, first_item=500)
    assert other.batch(rows, rows)["tokens"].max() < 500  # what is no item is spelled


def fits(task, target):
    return task.fits(np.array([target]))[0]


@settings(max_examples=50)
@given(LENGTHS, st.integers(1, 6), st.integers(0, 6), st.sampled_from(NAMES))
def test_nothing_shown_is_as_late_as_the_target(tokenizer, lengths, history, told, task):
    data = timelines_made.dataset(timelines_made.lengths_to_items(lengths))
    source = make(
        tokenizer, data, {task: 1.0, "next_item": 0.1}, history=history, text_history=told
    )
    rows = np.arange(len(source))
    batch = source.batch(rows, rows)
    for row, target in enumerate(source.targets.tolist()):
        start = data.offsets[user_of(np.array([target]), data.offsets)[0]]
        shown = batch["events"]["item"][row] - KNOWN  # each event's item is its number
        there = batch["segments"][row] > 0
        assert shown[there].tolist() == list(range(start, target))[-history:]
        for values in batch["events"].values():
            assert not values[row][~there].any()
        spelled = shown[there][max(0, there.sum() - told) :]
        for question in (source.question(t, target) for t in source.tasks if fits(t, target)):
            *lines, _ = question.prompt.splitlines()
            assert [line.split(" (")[0] for line in lines] == [
                timelines_made.title(event) for event in spelled
            ]
            later = filter(None, map(timelines_made.review, range(target, len(data.item))))
            assert not any(review in question.prompt for review in later)


@settings(max_examples=30)
@given(LENGTHS, st.integers(0, 99), st.integers(8, 80), st.integers(0, 3))
def test_weights_cover_exactly_the_tokens_of_the_answer(tokenizer, lengths, seed, room, told):
    data = timelines_made.dataset(timelines_made.lengths_to_items(lengths))
    tasks = {"next_item": 1.0, "favorite_category": 1.0}
    source = make(tokenizer, data, tasks, max_tokens=room, text_history=told)
    rows = np.arange(len(source))
    batch = source.batch(rows, rows + seed)
    assert batch["tokens"].shape == batch["weights"].shape == (len(rows), source.length)
    assert source.length <= room
    for row, target in enumerate(source.targets.tolist()):
        questions = [source.question(task, target) for task in source.tasks]
        answers = tokenizer.answers([question.answer for question in questions])
        weighed = batch["tokens"][row][batch["weights"][row] == 1].tolist()
        assert weighed in [answer[: source.length - 1] for answer in answers]
        (places,) = np.nonzero(batch["weights"][row])
        assert (np.diff(places) == 1).all()
        assert places[0] > 0
        assert not batch["tokens"][row][places[-1] + 1 :].any()


def test_rows_are_as_long_as_the_examples_need(tokenizer):
    data = timelines_made.dataset(timelines_made.lengths_to_items([9] * 4))
    for told in (0, 1, 3):
        source = make(tokenizer, data, {"next_item": 1.0}, text_history=told)
        questions = [source.question(source.tasks[0], target) for target in source.targets.tolist()]
        prompts = tokenizer.prompts([question.prompt for question in questions])
        answers = tokenizer.answers([question.answer for question in questions])
        longest = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
        assert longest <= source.length < longest + 8
        assert source.length % 8 == 0
        assert make(tokenizer, data, {"next_item": 1.0}, text_history=told).length == source.length
        short = make(tokenizer, data, {"next_item": 1.0}, text_history=told, max_tokens=9)
        assert short.length == 9


def test_a_batch_reads_as_prompt_and_answer(tokenizer):
    data = timelines_made.dataset(timelines_made.lengths_to_items([6, 4]))
    source = make(tokenizer, data, {"next_item": 1.0}, text_history=2)
    row = source.targets.tolist().index(8)
    batch = source.batch(np.array([row]), np.array([0]))
    answer = int(batch["weights"][0].sum())
    (length,) = np.flatnonzero(batch["tokens"][0])[-1:] + 1
    assert tokenizer.decode(batch["tokens"][0, :length].tolist()) == (
        "Film 6 of many (Drama, 2)\nFilm 7 of many (Comedy, Drama, 3)\n"
        "The next film: Film 8 of many"
    )
    ids = batch["tokens"][0, length - answer : length].tolist()
    assert tokenizer.decode(ids) == "Film 8 of many"


def test_the_favorite_is_that_of_the_history_shown(tokenizer):
    data = timelines_made.dataset([[1, 1, 1, 3, 3, 0]])  # three dramas, then two action films
    for history, favorite in ((5, "Drama"), (4, "Action"), (2, "Action")):
        source = make(tokenizer, data, {"favorite_category": 1.0}, history=history)
        assert source.question(source.tasks[0], 5).answer == favorite


def test_only_reviews_tell_reviews(tokenizer):
    data = timelines_made.dataset(timelines_made.lengths_to_items([6]))
    tasks = {name: 1.0 for name in NAMES}
    source = make(tokenizer, data, tasks, text_history=4)
    told = {task.name: source.question(task, 5).prompt for task in source.tasks if fits(task, 5)}
    assert "note 4 ends" in told["review_generation"]
    assert "note" not in told["next_item"] + told["favorite_category"]


def test_tasks_get_their_shares_of_the_examples(tokenizer):
    data = timelines_made.dataset(timelines_made.lengths_to_items([30]))
    tasks = {"next_item": 3.0, "favorite_category": 1.0, "review_generation": 0.0}
    source = make(tokenizer, data, tasks)
    drawn = [source._draw(4, seed).name for seed in range(2000)]
    assert abs(drawn.count("next_item") / 2000 - 0.75) < 0.03
    assert "review_generation" not in drawn


def test_an_event_without_a_review_is_asked_something_else(tokenizer):
    data = timelines_made.dataset(timelines_made.lengths_to_items([7]))
    source = make(tokenizer, data, {"review_generation": 1.0, "next_item": 1e-9})
    kinds = [type(source._draw(target, 0)) for target in range(1, 7)]
    wanted = [ReviewGeneration if timelines_made.review(e) else NextItem for e in range(1, 7)]
    assert kinds == wanted
    assert FavoriteCategory not in kinds


def test_a_task_that_cannot_ask_of_an_event_leaves_it_to_another(tokenizer):
    data = timelines_made.dataset(timelines_made.lengths_to_items([14]))
    source = make(tokenizer, data, {"future_favorite_category": 1.0, "next_item": 0.0})
    drawn = {t: source._draw(t, seed).name for t in range(1, 14) for seed in range(9)}
    assert drawn == {t: "future_favorite_category" if t < 5 else "next_item" for t in range(1, 14)}
    alone = make(tokenizer, data, {"future_favorite_category": 1.0})
    assert alone.targets.tolist() == [1, 2, 3, 4]


def test_a_summary_stands_before_the_events(tokenizer):
    data = timelines_made.dataset(timelines_made.lengths_to_items([6]))
    source = make(tokenizer, data, {"next_item": 1.0}, text_history=1, text_summary=True)
    summary, event, _ = source.question(source.tasks[0], 5).prompt.splitlines()
    assert summary.startswith("4 seen; ") and event == "Film 4 of many (Action, Comedy, 5)"


def test_tokens_of_a_memory_stand_behind_what_is_told_of_their_event(tokenizer):
    """The newest event's are the memory's last, whatever comes before."""
    data = timelines_made.dataset(timelines_made.lengths_to_items([6, 3]))
    placed = make(tokenizer, data, {"next_item": 1.0}, text_history=3, places=(4, 2))
    (task,) = placed.tasks
    targets = [(task, 5), (task, 7), (task, 6)]  # after five events, one and none
    questions, prompts = placed.prompts(targets)
    told = [[2, 3, 4], [6], []]
    for (_, target), question, prompt, events in zip(
        targets, questions, prompts, told, strict=True
    ):
        wanted, first = [], 4 - len(events)
        for nth, event in enumerate(events):
            wanted += tokenizer.pieces([history_text(data, np.array([event]))])[0]
            wanted += [-1 - 2 * (first + nth), -2 - 2 * (first + nth)]
        wanted += tokenizer.pieces(["The next film:"])[0]
        begin = [] if tokenizer.bos is None else [tokenizer.bos]
        assert prompt == begin + wanted
        assert question == placed.question(task, target)
