"""A table of figures: its means over seeds, its best ones, how it is shown."""

import statistics

import pytest

from user_llm.evaluation.rows import spread, table


def test_spread_is_the_mean_and_the_sample_deviation_of_each_value():
    runs = [
        [{"system": "a", "metrics": {"x/y/z": value}}, {"system": "b", "metrics": {}}]
        for value in (1.0, 2.0, 6.0)
    ]
    means, deviations = spread(runs)
    assert means[0] == {"system": "a", "metrics": {"x/y/z": 3.0}}
    assert deviations[0]["metrics"]["x/y/z"] == pytest.approx(statistics.stdev([1, 2, 6]))
    assert means[1] == deviations[1] == {"system": "b", "metrics": {}}
    assert "3.000 ±2.646*" in table(means, deviations)


def test_table_groups_columns_marks_the_best_contender_and_shows_what_is_missing():
    recall, accuracy = "test/next_item/recall_at_10", "test/favorite_category/accuracy"
    text = table(
        [
            {"system": "oracle", "metrics": {recall: 0.9}},
            {"system": "user_llm", "metrics": {recall: 0.31, accuracy: 0.75}},
            {"system": "no_context", "metrics": {recall: 0.1, accuracy: 0.75}},
        ]
    )
    groups, heading, _, oracle, ours, plain = text.splitlines()
    assert groups.index("test/next_item") < groups.index("test/favorite_category")
    assert heading.split() == ["system", "│", "recall@10", "│", "accuracy"]
    assert oracle.split() == ["oracle", "│", "0.900", "│", "–"]
    assert ours.split() == ["user_llm", "│", "0.310*", "│", "0.750*"]
    assert plain.split() == ["no_context", "│", "0.100", "│", "0.750*"]
