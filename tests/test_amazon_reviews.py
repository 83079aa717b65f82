"""Amazon's reviews of every release become timelines and items; what is wrong with them is told."""

import json
from pathlib import Path

import pytest
import review_files
from remarks_told import remarks

from user_llm.data.builders import build
from user_llm.data.dataset import Dataset, load

TIMES = {  # of each user: item, rating, seconds, by time and then by line
    "A": [("P2", 3, 978300000), ("P1", 5, 978300760), ("P3", 4, 978387160)],
    "B": [("P3", 4, 978300100), ("P1", 1, 978300300), ("P2", 2, 978300300)],
}
TEXTS = [
    "",
    "It sings.",
    "Für Kinder 🥁",
    "Fine drum. Loud.",
    "My cat &#34;helped&#34;.",
    "Not mine.",
]
SUMMED = [  # of the releases whose reviews begin with their summary
    *("So-so", "Great flute\nIt sings.", "Für Kinder 🥁", "Fine drum. Loud."),
    *("Broken\nMy cat &#34;helped&#34;.", "Not mine."),
]


def built(source: Path, version: str = "2014") -> Path:
    return build("amazon_reviews", source=source, data_dir=source.parent / "made", version=version)


def events(data: Dataset) -> dict[str, list[tuple]]:
    ids = [data.items.ids[item] for item in data.item]
    rows = list(zip(ids, data.ratings.tolist(), data.times.tolist(), strict=True))
    ends = data.offsets.tolist()
    return {user: rows[ends[u] : ends[u + 1]] for u, user in enumerate(data.users)}


def many(count: int) -> list[tuple]:
    return [(f"U{i % 9}", f"P{i % 7}", 5.0, 978300000 + i, "", f"No. {i}") for i in range(count)]


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("version", ["2014", "2018", "2023"])
def test_every_release_reads_alike(version, gz, tmp_path):
    folder = built(review_files.write(tmp_path / "raw", version, gz=gz), version)
    data = load(folder)
    assert events(data) == TIMES
    assert data.reviews == (TEXTS if version == "2023" else SUMMED)
    assert data.items.ids[2:] == ("P1", "P2", "P3")
    assert data.items.titles[2:] == ("Amélie's Flute & Case", "", "Drum")
    assert data.items.genres[2:] == (("Wind", "Gifts"), (), ("Percussion",))
    assert data.items.texts[2:] == ("A flute of wood.", "", "")
    assert data.schema.predicted == ("item", "rating")
    assert remarks(folder) == ""


def test_without_descriptions_items_are_bare(tmp_path):
    folder = built(review_files.write(tmp_path / "raw", "2014", items=[]))
    data = load(folder)
    assert events(data) == TIMES
    assert data.items.titles == ("",) * 5
    assert "3 of 3 items that occur in events are not described, such as 'P1'" in remarks(folder)


def test_a_first_category_that_not_all_items_share_stays(tmp_path):
    items = [*review_files.ITEMS[:2], ("P2", "Rake", [["Garden", "Rakes"]], None)]
    data = load(built(review_files.write(tmp_path / "raw", "2023", items=items), "2023"))
    told = (("Music", "Wind", "Gifts"), ("Garden", "Rakes"), ("Music", "Percussion"))
    assert data.items.genres[2:] == told


def test_what_is_no_title_and_no_category_is_left_out(tmp_path):
    source = review_files.write(tmp_path / "raw", "2018", items=[])
    script = "var aPageStart = (new Date()).getTime();"
    rows = [
        {"asin": "P1", "title": script, "category": ["Music", "Wind &amp; Brass"]},
        {"asin": "P2", "title": "Bow", "category": ["Music", "Bows", "</span></span>", "Soft"]},
        {"asin": "P3", "title": "Learning &lt;canvas&gt;", "description": ["One.", "Two."]},
    ]
    review_files.put(source / "meta_Music.json", list(map(json.dumps, rows)))
    items = load(built(source, "2018")).items
    assert items.titles[2:] == ("", "Bow", "Learning <canvas>")
    assert items.genres[2:] == (("Wind & Brass",), ("Bows",), ())
    assert items.texts[4] == "One. Two."


def test_of_several_descriptions_the_first_counts(tmp_path):
    items = [*review_files.ITEMS, ("P3", "Drums", None, None), review_files.ITEMS[1]]
    folder = built(review_files.write(tmp_path / "raw", "2014", items=items))
    assert load(folder).items.titles[4] == "Drum"
    assert remarks(folder) == (
        "1 items are described in several ways, such as 'P3'; the first one counts"
    )


def test_repeated_reviews_count_once(tmp_path):
    reviews = [*review_files.REVIEWS, review_files.REVIEWS[0]]
    folder = built(review_files.write(tmp_path / "raw", "2018", reviews=reviews), "2018")
    assert events(load(folder)) == TIMES
    assert remarks(folder) == "1 events repeat an earlier one in every column; they are dropped"


def test_milliseconds_order_the_reviews_of_a_second(tmp_path):
    source = review_files.write(tmp_path / "raw", "2023")
    path = source / "Music.jsonl"
    first, *others = path.read_text().splitlines()
    late = json.loads(others[2]) | {"timestamp": 978300300_900}
    review_files.put(path, [first, *others[:2], json.dumps(late), *others[3:]])
    data = load(built(source, "2023"))
    assert events(data)["B"] == [TIMES["B"][0], TIMES["B"][2], TIMES["B"][1]]


@pytest.mark.parametrize(
    "line",
    [
        '{"reviewerID": "A", "asi',
        "[1, 2]",
        "\xff",
        '{"reviewerID": "A", "asin": "P1", "overall": 5.0, "unixReviewTime": "today"}',
        '{"reviewerID": "A", "asin": "", "overall": 5.0, "unixReviewTime": 978300000}',
        '{"reviewerID": "A", "asin": "P1", "overall": null, "unixReviewTime": 978300000}',
        '{"asin": "P1", "overall": 5.0, "unixReviewTime": 978300000}',
        '{"reviewerID": "A", "asin": "P1", "overall": 5, "unixReviewTime": 978300000978300000000}',
    ],
)
def test_few_malformed_lines_are_dropped_and_counted(line, tmp_path):
    source = review_files.write(tmp_path / "raw", "2014", reviews=many(200), items=[])
    with (source / "reviews_Music_5.json").open("ab") as file:
        file.write(b"\n" + line.encode("latin-1") + b"\n")
    folder = built(source)
    assert len(load(folder).item) == 200
    assert "reviews_Music_5.json: 1 malformed lines dropped, first line 202" in remarks(folder)


def test_many_malformed_lines_are_refused(tmp_path):
    source = review_files.write(tmp_path / "raw", "2014", reviews=many(200), items=[])
    path = source / "reviews_Music_5.json"
    good = path.read_text().splitlines()
    review_files.put(path, [*good[:7], "{", *good[7:], "{", "{"])
    told = (
        r"reviews_Music_5.json: 3 of 203 lines are malformed, first line 8 \(.*\); each must be an "
        "object as JSON writes it, with reviewerID, asin, overall, unixReviewTime"
    )
    with pytest.raises(ValueError, match=told):
        built(source)
    assert not list(tmp_path.glob("made/*"))


def test_descriptions_of_another_release_are_refused(tmp_path):
    source = review_files.write(tmp_path / "raw", "2014")
    with pytest.raises(ValueError, match="meta_Music.json: 4 of 4 .* as JSON writes it, with asin"):
        built(source, "2018")


def test_a_gzip_file_that_is_cut_off_is_refused(tmp_path):
    source = review_files.write(tmp_path / "raw", "2014", gz=True)
    path = source / "reviews_Music_5.json.gz"
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(ValueError, match="reviews_Music_5.json.gz is not a whole gzip file"):
        built(source)


def test_half_an_emoji_is_replaced(tmp_path):
    source = review_files.write(tmp_path / "raw", "2014")
    path = source / "reviews_Music_5.json"
    path.write_text(path.read_text().replace(r"\udd41", ""))  # the other half of the drum
    assert load(built(source)).reviews[2] == "Für Kinder ?"


def test_the_first_of_several_lines_is_the_summary(tmp_path):
    source = review_files.write(tmp_path / "raw", "2014")
    path = source / "reviews_Music_5.json"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    user = rows[0]["reviewerID"]
    own = [row for row in rows if row["reviewerID"] == user]
    own[0] |= {"summary": "", "reviewText": "No summary here.\r\nA second line."}
    own[1] |= {"summary": "Fine", "reviewText": "Fine.\nIt is indeed."}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = load(built(source))
    told = data.reviews[data.offsets[data.users.index(user)] :]
    assert {"No summary here. A second line.", "Fine. It is indeed."} <= {*told}


def test_sources_without_the_files_of_a_version_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no version '2015'; choose from 2014, 2018, 2023, 2023_t"):
        built(tmp_path, "2015")
    with pytest.raises(ValueError, match="read from a folder with .*; .*no is none"):
        built(tmp_path / "no")
    source = review_files.write(tmp_path / "raw", "2014")
    with pytest.raises(
        ValueError, match=r"reviews as \*.jsonl, one file of .* it holds meta_Music"
    ):
        built(source, "2023")
    review_files.write(source, "2014", gz=True)
    with pytest.raises(
        ValueError, match="it holds .*reviews_Music_5.json, reviews_Music_5.json.gz"
    ):
        built(source)
    for path in source.glob("reviews*"):
        path.write_bytes(b"")
    (source / "reviews_Music_5.json.gz").unlink()
    with pytest.raises(ValueError, match=r"items as meta_\*.json, at most one, plain"):
        built(source)
    (source / "meta_Music.json.gz").unlink()
    with pytest.raises(ValueError, match="of 0 reviews none has a unixReviewTime"):
        built(source)


def test_timelines_of_the_sample_become_one_of_each_user(tmp_path):
    own = {
        u: sorted((r for r in review_files.REVIEWS if r[0] == u), key=lambda r: r[3]) for u in "AB"
    }
    source = review_files.timelines(
        tmp_path / "raw",
        training=[("A", "Pet_Supplies", own["A"][:2]), ("B", "Toys", own["B"][:1])],
        validation=[("A", "Pet_Supplies", own["A"][1:2])],
        test=[("A", "Toys", own["A"][2:]), ("B", "Pet_Supplies", own["B"][1:])],
    )
    folder = built(source, "2023_timelines")
    data = load(folder)
    assert events(data) == TIMES
    assert data.reviews == TEXTS
    assert data.items.titles[2:] == ("Amélie's Flute & Case", "", "Drum")
    assert data.items.genres[2:] == (("Pet Supplies",), ("Pet Supplies",), ("Toys",))
    assert remarks(folder) == "1 events repeat an earlier one in every column; they are dropped"


def test_a_sample_without_all_its_splits_is_refused(tmp_path):
    source = review_files.timelines(tmp_path / "raw")
    (source / "test.jsonl").unlink()
    with pytest.raises(
        ValueError, match="training.jsonl, validation.jsonl, test.jsonl, one file of"
    ):
        built(source, "2023_timelines")


def test_the_real_musical_instruments_have_their_counts(data_folder, tmp_path):
    source = data_folder / "amazon-musical-instruments"
    data = load(build("amazon_reviews", source=source, data_dir=tmp_path, version="2014"))
    assert (len(data.item), len(data.users), len(data.items.ids) - 2) == (10_261, 1_429, 900)
    with (source / "Musical_Instruments.json").open() as file:
        first = json.loads(file.readline())
    user = data.users.index(first["reviewerID"])
    told = data.reviews[data.offsets[user] : data.offsets[user + 1]]
    assert f"{first['summary']}\n{first['reviewText'].strip()}" in told


def test_the_real_timelines_have_their_counts(data_folder, tmp_path):
    source = data_folder / "amazon-2023-timelines"
    data = load(build("amazon_reviews", source=source, data_dir=tmp_path, version="2023_timelines"))
    assert (len(data.item), len(data.users), len(data.items.ids) - 2) == (3_455, 354, 3_228)
    assert len({genre for genres in data.items.genres for genre in genres}) == 24
