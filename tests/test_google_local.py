"""Google Local's reviews of both releases become timelines and places."""

from pathlib import Path

import pytest
import review_files
from remarks_told import remarks

from user_llm.data.builders import build
from user_llm.data.dataset import load

REVIEWS = [  # by user and time
    *("", "It sings.", "Für Kinder 🥁"),
    *("Fine drum. Loud.", "My cat &#34;helped&#34;.", "Not mine."),
]


def built(source: Path, version: str) -> Path:
    data_dir = source.parent / "made"
    return build("google_local", source=source, data_dir=data_dir, version=version)


def written(folder: Path, version: str, **content) -> Path:
    return review_files.write(folder, "2018_local" if version == "2018" else version, **content)


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("version", ["2021", "2018"])
def test_both_releases_read_alike(version, gz, tmp_path):
    folder = built(written(tmp_path / "raw", version, gz=gz), version)
    data = load(folder)
    assert data.users == ("A", "B")
    assert data.offsets.tolist() == [0, 3, 6]
    assert [data.items.ids[i] for i in data.item] == ["P2", "P1", "P3", "P3", "P1", "P2"]
    assert data.ratings.tolist() == [3, 5, 4, 4, 1, 2]
    assert data.times.tolist() == [
        *(978300000, 978300760, 978387160),
        *(978300100, 978300300, 978300300),
    ]
    assert data.reviews == REVIEWS
    assert data.items.titles[2:] == ("Amélie's Flute & Case", "", "Drum")
    assert data.items.genres[2:] == (("Music", "Wind", "Gifts"), (), ("Music", "Percussion"))
    assert data.items.texts[2] == ("A flute of wood." if version == "2021" else "")
    assert remarks(folder) == ""


def test_reviews_without_a_time_are_dropped_and_counted(tmp_path):
    untimed = [(*review[:3], None, *review[4:]) for review in review_files.REVIEWS[:2]]
    reviews = [*untimed, *review_files.REVIEWS[2:]]
    folder = built(written(tmp_path / "raw", "2018", reviews=reviews), "2018")
    assert load(folder).times.tolist() == [978300000, 978387160, 978300300, 978300300]
    assert remarks(folder) == "2 reviews have no unixReviewTime; they are dropped"
    none = written(tmp_path / "none", "2018", reviews=untimed)
    with pytest.raises(ValueError, match="of 2 reviews none has a unixReviewTime"):
        built(none, "2018")


def test_places_without_a_description_are_told_and_keep_their_categories(tmp_path):
    source = written(tmp_path / "raw", "2018")
    (source / "places.clean.json").unlink()
    folder = built(source, "2018")
    items = load(folder).items
    assert items.titles == ("",) * 5
    assert items.genres[2:] == (("Music", "Wind", "Gifts"), (), ("Music", "Percussion"))
    assert "3 of 3 items that occur in events are not described" in remarks(folder)


def test_repeated_reviews_and_places_count_once(tmp_path):
    reviews, items = review_files.REVIEWS, review_files.ITEMS
    source = written(
        tmp_path / "raw", "2021", reviews=[*reviews, reviews[0]], items=[*items, *items]
    )
    folder = built(source, "2021")
    assert len(load(folder).item) == 6
    assert remarks(folder) == "1 events repeat an earlier one in every column; they are dropped"


def test_code_in_a_line_is_never_run(tmp_path):
    source = written(tmp_path / "raw", "2018")
    path, ran = source / "reviews.clean.json", tmp_path / "ran"
    path.write_text(f"__import__('pathlib').Path({str(ran)!r}).touch()\n{path.read_text()}")
    with pytest.raises(ValueError, match=r"1 of 7 lines are malformed, first line 1 \(malformed"):
        built(source, "2018")
    assert not ran.exists()


def test_files_of_another_release_are_refused(tmp_path):
    source = written(tmp_path / "raw", "2018")
    with pytest.raises(ValueError, match=r"reviews as review-\*.json, .* it holds places.clean.js"):
        built(source, "2021")
    with pytest.raises(ValueError, match="google_local has no version '2014'; choose from 2021"):
        built(source, "2014")
    (source / "reviews.clean.json").rename(source / "review-Utah.json")
    with pytest.raises(ValueError, match="review-Utah.json: 6 of 6 lines .* as JSON writes it"):
        built(source, "2021")
