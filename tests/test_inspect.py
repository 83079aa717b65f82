"""A data set's description tells its counts, its lengths and what its events read like."""

import re

import movielens_files
import pytest
import review_files

from user_llm.data.builders import build
from user_llm.data.inspect import describe


def test_a_description_tells_counts_lengths_and_a_timeline(tmp_path):
    source = movielens_files.write(tmp_path / "raw", "1m")
    text = describe(build("movielens", source=source, data_dir=tmp_path, version="1m"))
    assert "2 users, 6 events, 3 items with events, 2000-12-31 to 2001-01-01" in text
    assert "note: differs from the official 1m: 6 ratings instead of 1,000,209" in text
    assert "item: categorical of size 5" in text
    assert "median 3, from 3 to 3" in text
    assert re.search(r"2-3 +#{40} 2", text)
    assert "2000-12-31 22:05  Amélie (2001) [Comedy, Romance]  rated 1" in text


def test_reviews_are_shown_and_long_timelines_cut(tmp_path):
    text = describe(build("world", source=None, data_dir=tmp_path, users=3))
    assert re.search(r"user u00\d\d: the last 8 of \d+ events", text)
    example = text.split("user u")[1].splitlines()[1:]
    assert len(example) == 8
    assert all('"' in line for line in example)


def test_a_review_of_several_lines_is_shown_on_one(tmp_path):
    source = review_files.write(tmp_path / "raw", "2014")
    folder = build("amazon_reviews", source=source, data_dir=tmp_path, version="2014")
    assert 'Drum [Percussion]  rated 4  "Fine drum. Loud."' in describe(folder)


def test_a_folder_without_a_data_set_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no built data set"):
        describe(tmp_path)
