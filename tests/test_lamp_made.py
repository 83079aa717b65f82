"""Sets in LaMP's shape: profiles tell what came before, and never the answer."""

import pytest

from user_llm.cli import main
from user_llm.data import builders
from user_llm.data.dataset import load
from user_llm.data.lamp import KINDS, labels, read
from user_llm.data.lamp_made import LEAST, from_timelines


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return load(
        builders.build("world", source=None, data_dir=tmp_path_factory.mktemp("data"), users=30)
    )


@pytest.mark.parametrize("task", ["LaMP_2", "LaMP_3"])
def test_profiles_are_what_came_before(world, task):
    made = from_timelines(world, task)
    assert {len(questions) for questions in made.values()} == {30}
    for split, behind in (("test", 1), ("dev", 2), ("train", 3)):
        for user, question in enumerate(made[split]):
            first, last = world.offsets[user], world.offsets[user + 1]
            assert question.id == f"{world.users[user]}-{split}"
            asked = int(last) - behind
            text = world.review(asked) if task == "LaMP_3" else world.items.texts[world.item[asked]]
            assert question.input.endswith(text)
            assert KINDS[task].present(question.input) == text.strip()
            assert [int(entry["id"]) for entry in question.profile] == list(
                range(int(first), asked)
            )
            assert len(question.profile) >= LEAST


def test_answers_are_what_the_event_says(world):
    for question, last in zip(
        from_timelines(world, "LaMP_3")["test"], world.offsets[1:], strict=True
    ):
        assert question.output == f"{world.ratings[last - 1]:g}"
    tags = from_timelines(world, "LaMP_2")["train"]
    assert {question.output for question in tags} <= {g for own in world.items.genres for g in own}
    outputs = {question.output for question in tags}
    assert labels("LaMP_2", outputs) == tuple(sorted(outputs))


def test_long_profiles_keep_the_newest(world):
    (question, *_) = from_timelines(world, "LaMP_3", profile=4)["test"]
    assert [int(e["id"]) for e in question.profile] == list(
        range(world.offsets[1] - 5, world.offsets[1] - 1)
    )


def test_users_may_be_asked_more_in_training(world):
    one, more = (from_timelines(world, "LaMP_3", questions=n) for n in (1, 3))
    assert (more["dev"], more["test"]) == (one["dev"], one["test"])
    assert set(q.id for q in one["train"]) < {q.id for q in more["train"]}
    assert len({q.id for q in more["train"]}) == len(more["train"]) == 90
    for question in more["train"]:
        asked = int(question.profile[-1]["id"]) + 1
        assert question.input.endswith(world.review(asked))


def test_what_cannot_be_made_is_refused(world):
    with pytest.raises(ValueError, match="LaMP_7 cannot be made from timelines; LaMP_2, LaMP_3"):
        from_timelines(world, "LaMP_7")
    with pytest.raises(ValueError, match="no user has the 6 events that LaMP_4 needs"):
        from_timelines(world, "LaMP_4")  # its reviews have no summaries


def test_the_verb_writes_the_official_layout(tmp_path, capsys):
    folder = builders.build("world", source=None, data_dir=tmp_path, users=30)
    out = tmp_path / "lamp"
    assert main(["data", "lamp-from-reviews", str(folder), "--out", str(out)]) == 0
    assert "questions: 30 of train, 30 of dev, 30 of test" in capsys.readouterr().out
    assert read(out) == ("LaMP_3", from_timelines(load(folder), "LaMP_3"))


def test_the_verb_takes_the_profiles_length_and_the_questions_of_a_user(tmp_path, capsys):
    folder = builders.build("world", source=None, data_dir=tmp_path, users=30)
    asked = ["data", "lamp-from-reviews", str(folder), "--out", str(tmp_path / "lamp")]
    assert main([*asked, "--profile", "4", "--questions", "3"]) == 0
    assert read(tmp_path / "lamp")[1] == from_timelines(
        load(folder), "LaMP_3", profile=4, questions=3
    )
    assert main([*asked, "--profile", "0"]) == 2
    assert "profile=0" in capsys.readouterr().err


def test_reviews_of_2014_give_their_summaries(data_folder, tmp_path):
    source = data_folder / "amazon-musical-instruments"
    data = load(builders.build("amazon_reviews", source=source, data_dir=tmp_path, version="2014"))
    made = from_timelines(data, "LaMP_4")
    for question in made["test"][:20]:
        assert question.output
        assert "\n" not in question.output
        assert question.output not in question.input[:60]
