"""The report is parsed as XML and compared with the numbers and texts that went in."""

import json
import re
import xml.etree.ElementTree as ET

import pytest

from user_llm.evaluation import report

HOSTILE = "<script>alert(\"x\")</script> & 'quotes' {{ 7 * 7 }} </title></style>"
RECALL = "test/next_item/recall_at_1"
CATEGORY = "test/favorite_category/accuracy"
EVALUATION = {
    "experiment": "quickstart",
    "commit": "4f3c9e1",
    "device": "1 x cpu",
    "date": "2026-01-31",
    "dataset": {"users": 2000, "items": 400, "events": 120000},
    "rows": [
        {"system": "oracle", "metrics": {RECALL: 0.5}},
        {"system": "user_llm", "metrics": {RECALL: 0.1242, CATEGORY: 0.781}},
        {"system": "no_context", "metrics": {RECALL: 0.0401, CATEGORY: 0.312}},
        {"system": "text_prompt", "metrics": {RECALL: 0.0811}},
    ],
    "users": [
        {
            "user": "u0001",
            "history": [
                {"title": f"Film {i}", "genres": ["Drama"], "rating": 3.5, "review": "Kind."}
                for i in range(report.RECENT + 2)
            ],
            "answers": [
                {
                    "task": "next_item",
                    "prompt": "Which film next?",
                    "target": "Iron Tide",
                    "answers": {"user_llm": "Iron Tide", "no_context": "Paper Orbit"},
                    "top": [["Iron Tide", -1.25], ["Last Winter", -2.5]],
                }
            ],
            "attention": [[0.25, 0.125, *[0.625 / report.RECENT] * report.RECENT]],
        }
    ],
}
BENCHMARK = {
    "device": "1 x cpu",
    "rows": [
        {"system": "user_llm", "history": 50, "prompt_tokens": 9, "seconds": 0.0125, "flops": 2e9},
        {
            "system": "text_prompt",
            "history": 50,
            "prompt_tokens": 709,
            "seconds": 0.05,
            "flops": 4e10,
        },
    ],
}
LOG = [
    {"step": 20, "seconds": 3.1, "train/loss": 2.31, "train/events_per_second": 1e5},
    {"step": 40, "seconds": 6.2, "train/loss": 1.97, "validation/ndcg_at_10": 0.1234},
]


def fill(folder, **files):
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(exist_ok=True)
        if name.endswith("metrics"):
            path = path.with_suffix(".jsonl")
            path.write_text("".join(json.dumps(line) + "\n" for line in content))
        else:
            path.with_suffix(".json").write_text(json.dumps(content))
    return folder


def parse(path):
    """The page as elements; fails unless it is well-formed."""
    page = path.read_text(encoding="utf-8")
    root = ET.fromstring(page.strip().removeprefix("<!DOCTYPE html>"))
    return page, root, re.sub(r"\s+", " ", "".join(root.itertext()))


@pytest.fixture
def run(tmp_path):
    return fill(
        tmp_path,
        evaluation=EVALUATION,
        benchmark=BENCHMARK,
        config={"name": "quickstart", "seed": 7},
        pretrain__metrics=LOG,
        warmup__metrics=LOG,
    )


def test_the_page_needs_nothing_but_itself(run):
    page, root, _ = parse(report.write(run))
    assert "http" not in page and "@import" not in page and "url(" not in page
    assert not list(root.iter("script"))
    links = [e.get(a) for e in root.iter() for a in ("src", "href", "srcset") if e.get(a)]
    assert links == ["data:,"]  # no icon, and no request for one
    assert sorted(path.name for path in run.glob("report*")) == ["report.html"]


def test_the_page_shows_the_numbers_given(run):
    _, root, text = parse(report.write(run))
    for said in (
        *("2026-01-31", "1 x cpu", "4f3c9e1", "2,000 users, 400 items, 120,000 events"),
        *("0.500", "0.124", "0.040", "0.781", "0.312", "0.081"),
        *("× 3.1", "× 2.5", "× 2.0"),  # gains against no_context
        *("12.5", "50", "709"),  # ms and prompt tokens
        "takes 4.0 × the time and 20 × the arithmetic",
        *("40 steps in 6.2 s", "100,000 events a second"),
        *("u0001", "Film 0", "Drama", "★★★½", "Which film next?", "Paper Orbit ✗", "\u22122.50"),
        "2 earlier events, with 38 % of the attention",
        '"seed": 7',
    ):
        assert said in text, said
    titles = {title.text for title in root.iter("title")}
    assert titles >= {
        *("layer 1: 0.2500", "layer 1: 0.1250"),
        *("train: 1.97 at 40", "ndcg_at_10: 0.1234 at 40"),
    }


def test_the_best_of_each_column_is_marked_and_bounds_are_not(run):
    _, root, _ = parse(report.write(run))
    marked = [cell.text for cell in root.iter("td") if "best" in cell.get("class", "")]
    assert marked == ["0.124", "0.781"]


def test_hostile_text_stays_text(run):
    evaluation = json.loads(json.dumps(EVALUATION).replace("u0001", "USER"))
    evaluation |= {"experiment": HOSTILE, "device": HOSTILE, "dataset": {HOSTILE: 1}}
    evaluation["rows"][3]["system"] = HOSTILE
    user = evaluation["users"][0]
    user["user"] = HOSTILE
    user["history"][-1] |= {"title": HOSTILE, "genres": [HOSTILE]}
    user["answers"][0] |= {
        "prompt": HOSTILE,
        "target": HOSTILE,
        "answers": {HOSTILE: HOSTILE},
        "top": [[HOSTILE, -1.0]],
    }
    fill(run, evaluation=evaluation, config={"name": HOSTILE})
    fill(run, benchmark={"device": HOSTILE, "rows": [BENCHMARK["rows"][0] | {"system": HOSTILE}]})
    page, root, text = parse(report.write(run))
    assert "<script" not in page
    assert not list(root.iter("script"))
    assert text.count("<script>alert(\"x\")</script> & 'quotes' {{ 7 * 7 }}") >= 10


@pytest.mark.parametrize(
    ("files", "headings"),
    [
        ({"evaluation": {"rows": EVALUATION["rows"]}}, ["Results"]),
        ({"evaluation": {"rows": [{"system": "user_llm", "metrics": {}}]}}, []),
        ({"evaluation": {"users": [{"user": "u", "history": [{"title": "A"}]}]}}, ["A user"]),
        ({"benchmark": {"rows": BENCHMARK["rows"][:1]}}, ["What an answer costs"]),
        ({"pretrain__metrics": LOG[:1]}, ["Training"]),
        ({"config": {"name": "x"}}, ["Configuration"]),
    ],
)
def test_missing_parts_are_left_out(tmp_path, files, headings):
    _, root, _ = parse(report.write(fill(tmp_path, **files)))
    assert [heading.text for heading in root.iter("h2")] == headings


def test_stages_stand_in_the_order_of_training(tmp_path):
    for name in ("finetune-text_prompt", "finetune-user_llm", "warmup", "pretrain", "finetune-a"):
        fill(tmp_path, **{f"{name}__metrics": LOG})
    _, root, _ = parse(report.write(tmp_path))
    assert [heading.text for heading in root.iter("h3")] == [
        *("Pre-training the user encoder", "Warming the language model up"),
        *("Fine-tuning: User-LLM", "Fine-tuning: text prompt", "Fine-tuning: a"),
    ]


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nothing to report"):
        report.write(tmp_path)


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "evaluation.json").write_text("{")
    with pytest.raises(ValueError, match=r"evaluation\.json is not JSON"):
        report.write(tmp_path)


def test_attention_over_other_events_than_the_history_is_refused(tmp_path):
    user = {"user": "u7", "history": [{"title": "A"}], "attention": [[0.5, 0.5]]}
    fill(tmp_path, evaluation={"users": [user]})
    with pytest.raises(ValueError, match="user u7: cross-attention layer 1 has 2 weights for 1"):
        report.write(tmp_path)


@pytest.mark.parametrize(
    ("ours", "plain", "said"),
    [
        ({RECALL: 0.31}, {RECALL: 0.1}, "names the next item first 3.1 × as often as without it"),
        ({RECALL: 0.05}, {RECALL: 0.1}, "names the next item first 0.50 × as often"),
        ({RECALL: 0.125}, {RECALL: 0.0}, "names the next item first in 12.5% of cases, and never"),
        ({CATEGORY: 0.8}, {CATEGORY: 0.4}, "names the favorite category 2.0 × as often"),
    ],
)
def test_the_headline_says_what_the_numbers_say(ours, plain, said):
    rows = [{"system": "user_llm", "metrics": ours}, {"system": "no_context", "metrics": plain}]
    assert said in report.headline(rows)
    assert report.headline(rows[:1]) == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.14, "3.14 s"), (200, "3 min 20 s"), (7325, "2 h 2 min")]
)
def test_durations_are_said_in_two_units(seconds, text):
    assert report.duration(seconds) == text
