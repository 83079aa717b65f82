"""LaMP's files in their official layout, what is made of them, and how answers are scored."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from user_llm.data import lamp
from user_llm.data.lamp import KINDS, Question, read, submit, write
from user_llm.evaluation.lamp import score
from user_llm.metrics import MacroF1

INPUTS = {
    "LaMP_1": 'For an author who has written the paper with the title "Deep nets", which reference '
    'is related? Just answer with [1] or [2] without explanation. [1]: "Wide nets" [2]: "Frogs"',
    "LaMP_2": "Which tag does this movie relate to among the following tags? Just answer with the "
    "tag name without further explanation. tags: [sci-fi, comedy] description: A robot laughs.",
    "LaMP_3": "What is the score of the following review on a scale of 1 to 5? just answer with 1, "
    "2, 3, 4, or 5 without further explanation. review: It broke: bad.",
    "LaMP_4": "Generate a headline for the following article: Rain fell.",
    "LaMP_5": "Generate a title for the following abstract of a paper: We count frogs.",
    "LaMP_7": "Paraphrase the following tweet without any explanation before or after it: so tired",
}
PRESENT = {
    "LaMP_1": "Wide nets Frogs",
    "LaMP_2": "A robot laughs.",
    "LaMP_3": "It broke: bad.",
    "LaMP_4": "Rain fell.",
    "LaMP_5": "We count frogs.",
    "LaMP_7": "so tired",
}
OUTPUTS = {
    "LaMP_1": "[1]",
    "LaMP_2": "sci-fi",
    "LaMP_3": "1",
    "LaMP_4": "Wet day",
    "LaMP_5": "Frogs",
    "LaMP_7": "I am tired",
}
PROMPTS = {
    "LaMP_1": '"Deep nets", and "title 0", and "title 1", which reference is related?',
    "LaMP_2": 'the tag for the movie: "description 0" is "tag 0", and the tag for the movie: '
    '"description 1" is "tag 1". Which tag',
    "LaMP_3": '0 is the score for "text 0", and 1 is the score for "text 1". What is',
    "LaMP_4": '"title 0" is the title for "text 0", and "title 1" is the title for "text 1". '
    "Generate",
    "LaMP_5": '"title 0" is the title for "abstract 0", and "title 1" is the title for '
    '"abstract 1". Following the given patterns Generate',
    "LaMP_7": '"text 0", and "text 1" are written by a person. Following the given patterns Para',
}


def entry(task, i, date=True):
    said = {name: f"{name} {i}" for name in KINDS[task].fields}
    if "score" in said:
        said["score"] = str(i)
    return {"id": f"e{i}", **said} | ({"date": f"2020-01-{i + 1:02}"} if date else {})


def questions(task, count=3):
    return [
        Question(f"{i}", INPUTS[task], tuple(entry(task, j) for j in range(i)), OUTPUTS[task])
        for i in range(count)
    ]


@pytest.mark.parametrize("task", INPUTS)
def test_what_is_written_is_read(tmp_path, task):
    splits = {"train": questions(task), "dev": questions(task, 2)}
    silent = [Question("9", INPUTS[task], (), None)]
    write(tmp_path, task, splits | {"test": silent})
    assert read(tmp_path) == (task, splits | {"test": silent})
    official = json.loads((tmp_path / "train_outputs.json").read_text())
    assert official["task"] == task
    assert official["golds"][0] == {"id": "0", "output": OUTPUTS[task]}
    assert not (tmp_path / "test_outputs.json").exists()


def test_numbers_are_read_as_text(tmp_path):
    asked = [{"id": 7, "input": INPUTS["LaMP_3"], "profile": [{"id": 1, "text": "x", "score": 4}]}]
    (tmp_path / "dev_questions.json").write_text(json.dumps(asked))
    golds = {"task": "LaMP_3", "golds": [{"id": "7", "output": 5}]}
    (tmp_path / "dev_outputs.json").write_text(json.dumps(golds))
    ((question,),) = read(tmp_path)[1].values()
    assert question.id == "7"
    assert question.output == "5"
    assert question.profile[0]["score"] == "4"


@pytest.mark.parametrize("task", INPUTS)
def test_prompts_are_those_of_the_authors(task):
    kind = KINDS[task]
    told = kind.prompt(INPUTS[task], [kind.tells(entry(task, i)) for i in range(2)])
    assert PROMPTS[task] in told
    assert told.endswith(INPUTS[task][-20:])
    assert kind.prompt(INPUTS[task], []) == INPUTS[task]
    assert kind.present(INPUTS[task]) == PRESENT[task]


def test_retrieval_reads_no_label():
    assert KINDS["LaMP_2"].says(entry("LaMP_2", 3)) == "description 3"
    assert KINDS["LaMP_3"].says(entry("LaMP_3", 3)) == "text 3"
    assert KINDS["LaMP_5"].says(entry("LaMP_5", 3)) == "title 3 abstract 3"


def broken(tmp_path, change):
    write(tmp_path, "LaMP_4", {"train": questions("LaMP_4"), "dev": questions("LaMP_4")})
    files = {path.name: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    change(files)
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda files: files["train_questions.json"][2]["profile"][1].pop("title"),
            "train_questions.json, question 2: profile entry 1: title is missing",
        ),
        (
            lambda files: files["dev_questions.json"][1].update(profile=None),
            "dev_questions.json, question 1: profile is no list",
        ),
        (
            lambda files: files["dev_questions.json"][0].update(input="Say something"),
            "dev_questions.json, question 0: input has no text behind 'article:'",
        ),
        (
            lambda files: files["dev_questions.json"].__setitem__(0, "what"),
            "dev_questions.json, question 0: is no object",
        ),
        (
            lambda files: files["train_outputs.json"]["golds"][1].update(output=["a"]),
            "train_outputs.json, gold 1: output is list, not text",
        ),
        (
            lambda files: files["train_outputs.json"]["golds"].pop(),
            "train_questions.json and train_outputs.json differ in ids such as '2'",
        ),
        (
            lambda files: files["train_outputs.json"].update(task="LaMP_6"),
            "train_outputs.json: task is 'LaMP_6', where one of LaMP_1",
        ),
        (
            lambda files: files["train_outputs.json"].update(task="LaMP_5"),
            "outputs name several tasks, ['LaMP_4', 'LaMP_5']",
        ),
    ],
)
def test_malformed_files_are_refused_by_file_index_and_field(tmp_path, change, told):
    broken(tmp_path, change)
    with pytest.raises(ValueError) as refused:
        read(tmp_path)
    assert told in str(refused.value)


def test_all_problems_are_counted_and_the_first_are_told(tmp_path):
    broken(tmp_path, lambda files: [q.pop("input") for q in files["train_questions.json"]] * 1)
    with pytest.raises(ValueError) as refused:
        read(tmp_path)
    assert str(refused.value).count("input is missing") == 3


def test_folders_without_questions_and_files_that_are_no_json_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds none of train_questions.json"):
        read(tmp_path)
    (tmp_path / "dev_questions.json").write_text("[]")
    with pytest.raises(ValueError, match="holds no outputs, which name the task"):
        read(tmp_path)
    (tmp_path / "dev_outputs.json").write_text("{")
    with pytest.raises(ValueError, match="dev_outputs.json is no JSON"):
        read(tmp_path)


def test_scores_are_those_of_the_official_evaluation():
    golds = {"a": "1", "b": "5", "c": "3"}
    stars = score("LaMP_3", {"a": "2", "b": "none", "c": " 3 "}, golds)
    assert stars == pytest.approx({"mae": 5 / 3, "rmse": math.sqrt(17 / 3)})
    texts = score("LaMP_4", {"a": "wet day"}, {"a": "a wet day"})
    assert texts == pytest.approx({"rouge_1": 0.8, "rouge_l": 0.8})
    with pytest.raises(ValueError, match="1 questions are either not answered or not known"):
        score("LaMP_3", {"a": "1", "b": "1"}, golds)


@given(st.lists(st.tuples(*[st.sampled_from(["[1]", "[2]", "odd"])] * 2), min_size=1))
def test_macro_f1_is_that_of_scikit_learn_in_any_parts(pairs):
    from sklearn.metrics import accuracy_score, f1_score

    said, right = zip(*pairs, strict=True)
    labels = KINDS["LaMP_1"].labels
    wanted = f1_score(right, said, labels=labels, average="macro", zero_division=0)
    whole = MacroF1.from_answers(said, right, labels)
    assert whole.compute()["macro_f1"] == pytest.approx(wanted)
    half = len(pairs) // 2
    parts = [
        MacroF1.from_answers(said[s], right[s], labels) for s in (slice(half), slice(half, None))
    ]
    assert parts[0].merge(parts[1]) == whole
    assert MacroF1.empty().merge(whole) == whole == whole.merge(MacroF1.empty())
    by_id = lambda x: {str(i): one for i, one in enumerate(x)}
    assert score("LaMP_1", by_id(said), by_id(right), labels)["accuracy"] == accuracy_score(
        right, said
    )


def test_a_submission_is_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "test_outputs.json"
    submit(path, "LaMP_7", {"1": "tired"})
    before = path.read_text()
    monkeypatch.setattr(lamp.json, "dumps", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        submit(path, "LaMP_7", {"1": "awake"})
    assert path.read_text() == before
    assert np.array_equal([p.name for p in tmp_path.iterdir()], ["test_outputs.json"])


def test_labels_are_lamps_own_or_those_of_the_set():
    assert lamp.labels("LaMP_2", ["comedy"]) == KINDS["LaMP_2"].labels
    assert lamp.labels("LaMP_2", ["Drama", "Comedy", "Drama"]) == ("Comedy", "Drama")
    assert lamp.labels("LaMP_4", ["any"]) == ()
