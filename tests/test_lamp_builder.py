"""LaMP's questions as timelines: what is told, in which order, and who is judged."""

import numpy as np
import pytest
from test_lamp import INPUTS, OUTPUTS, PRESENT, entry

from user_llm.config import DataConfig
from user_llm.data import builders, lamp
from user_llm.data.dataset import load
from user_llm.data.lamp import KINDS, Question
from user_llm.data.tasks import TASKS
from user_llm.sources import split


def questions(task, ages, output=True):
    """One of a profile for each list of the entries' ages, by which their days go."""
    return [
        Question(
            str(i),
            INPUTS[task],
            tuple(entry(task, age) for age in own),
            OUTPUTS[task] if output else None,
        )
        for i, own in enumerate(ages)
    ]


@pytest.fixture
def built(tmp_path):
    def build(task, version=None, **splits):
        lamp.write(tmp_path / task, task, splits)
        folder = builders.build(
            "lamp", source=tmp_path / task, data_dir=tmp_path / "data", version=version or task
        )
        return load(folder)

    return build


@pytest.mark.parametrize("task", INPUTS)
def test_a_question_is_a_timeline_that_ends_in_it(built, task):
    kind = KINDS[task]
    data = built(task, train=questions(task, [[2, 0, 1], [4]]), dev=questions(task, [[1], []]))
    assert data.users == ("train/0", "train/1", "dev/0", "dev/1")
    assert np.diff(data.offsets).tolist() == [4, 2, 2, 1]
    said = [kind.says(entry(task, i)) for i in (0, 1, 2)]
    assert [data.review(i) for i in range(4)] == [*said, PRESENT[task]]
    assert list(data.asked.told[:4]) == [*(kind.tells(entry(task, i)) for i in (0, 1, 2)), ""]
    assert list(data.asked.inputs[:4]) == ["", "", "", INPUTS[task]]
    assert list(data.asked.outputs[:4]) == ["", "", "", OUTPUTS[task]]
    labels = [data.items.ids[item] for item in data.item[:4]]
    label = kind.label
    assert labels == (
        [entry(task, i)[label] for i in (0, 1, 2)] + [OUTPUTS[task]] if label else ["text"] * 4
    )
    ask = TASKS[task](data)
    assert ask.fits(np.arange(len(data.item))).tolist() == [i in (3, 5, 7, 8) for i in range(9)]
    question = ask.ask(np.arange(3), 3)
    assert question == (INPUTS[task], OUTPUTS[task])
    assert ask.present(3) == PRESENT[task]
    told = ask.told(question.prompt, np.array([1, 0]))
    assert told == kind.prompt(INPUTS[task], [kind.tells(entry(task, i)) for i in (1, 0)])


def test_files_say_who_trains_and_who_is_judged(built):
    task, config = "LaMP_3", DataConfig(name="lamp", protocol="by_file")
    train, dev = questions(task, [[0], [1]]), questions(task, [[0, 1]])
    own = split(config, built(task, train=train, dev=dev))
    assert own.train_stop.tolist() == [2, 4, 4]
    assert own.validation.tolist() == own.test.tolist() == [6]


def test_test_questions_are_judged_where_their_answers_are_known(built):
    task, config = "LaMP_3", DataConfig(name="lamp", protocol="by_file")
    train, dev, test = (questions(task, [[0]]) for _ in range(3))
    own = split(config, built(task, train=train, dev=dev, test=test))
    assert (own.validation.tolist(), own.test.tolist()) == ([3], [5])
    silent = questions("LaMP_2", [[0]], output=False)
    train, dev = (questions("LaMP_2", [[0]]) for _ in range(2))
    own = split(config, built("LaMP_2", train=train, dev=dev, test=silent))
    assert own.validation.tolist() == own.test.tolist() == [3]


def test_what_does_not_fit_is_refused(built, tmp_path):
    with pytest.raises(ValueError, match="is of LaMP_3; name it as the version, not 'LaMP_2'"):
        built("LaMP_3", "LaMP_2", dev=questions("LaMP_3", [[0]]))
    with pytest.raises(ValueError, match="lamp reads a folder in LaMP's layout"):
        builders.build("lamp", source=None, data_dir=tmp_path)
    world = load(builders.build("world", source=None, data_dir=tmp_path, users=5))
    with pytest.raises(ValueError, match=r"LaMP_3 is asked of LaMP's data; set data.name"):
        TASKS["LaMP_3"](world)
    with pytest.raises(ValueError, match='protocol "by_file" is of LaMP'):
        split(DataConfig(protocol="by_file"), world)


def test_undated_entries_keep_their_order(built, caplog):
    task = "LaMP_3"
    undated = tuple(entry(task, i, date=False) for i in (2, 0, 1))
    data = built(task, dev=[Question("0", INPUTS[task], undated, "1")])
    assert [data.review(i) for i in range(3)] == ["text 2", "text 0", "text 1"]
    assert "not all entries have a date; their order in the file stands for time" in caplog.text
