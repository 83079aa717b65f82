"""Raw files become complete data sets: nothing is lost, and what is wrong with them is told."""

import json
import subprocess
import sys
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import movielens_files
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from user_llm.data.builders import build
from user_llm.data.dataset import load
from user_llm.data.records import fingerprint
from user_llm.data.world import World

EXPECTED = {  # of each user: movie, rating, timestamp, by time and then by line
    "1": [(20, 3, 978300000), (10, 5, 978300760), (30, 4, 978387160)],
    "2": [(30, 4, 978300100), (10, 1, 978300300), (20, 2, 978300300)],
}
SCHEMA = {
    "features": [
        {"kind": "categorical", "name": "item"},
        {"kind": "numeric", "name": "price"},
        {"kind": "bag", "name": "tags"},
        {"kind": "text", "name": "image", "vector": 2},
        {"kind": "categorical", "name": "brand", "of": "item"},
        {"kind": "numeric", "name": "weight", "of": "item"},
        {"kind": "time", "name": "when"},
    ],
    "columns": {"user": "reviewer", "item": "asin", "timestamp": "time"},
}
EVENTS = [
    dict(reviewer="b", asin="007", time=50, price=2.5, tags=["x", "y"], image=[1, 2], rating=4),
    dict(reviewer="a", asin="12", time=70, price=None, tags=[], image=None, rating=None),
    dict(reviewer="a", asin="007", time=60, price=1.0, tags=["y"], image=[3, 4], rating=5),
]
ITEMS = [
    dict(asin="12", title="Drum", brand="acme", weight=3.5),
    dict(asin="007", title="Flöte", brand=None, weight=None),
]


def timelines(data) -> dict[str, list[tuple]]:
    rows = list(
        zip(
            (int(data.items.ids[i]) for i in data.item),
            data.ratings.tolist(),
            data.times.tolist(),
            strict=True,
        )
    )
    ends = data.offsets.tolist()
    return {user: rows[ends[u] : ends[u + 1]] for u, user in enumerate(data.users)}


def remarks(folder: Path) -> str:
    return "\n".join(json.loads((folder / "counts.json").read_text())["remarks"])


def movielens(source: Path, tmp_path: Path, version: str = "1m") -> Path:
    return build("movielens", source=source, data_dir=tmp_path / "built", version=version)


def table(folder: Path, *, events=EVENTS, items=ITEMS, schema=SCHEMA) -> Path:
    folder.mkdir(parents=True)
    (folder / "schema.json").write_text(json.dumps(schema))
    for name, rows in (("events", events), ("items", items)):
        if rows is not None:
            lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
            (folder / f"{name}.jsonl").write_text("".join(line + "\n" for line in lines))
    return folder


def built_table(folder: Path, tmp_path: Path) -> Path:
    return build("table", source=folder, data_dir=tmp_path / "built")


@pytest.mark.parametrize("version", ["100k", "1m", "10m", "20m", "25m", "32m", "latest-small"])
def test_movielens_reads_every_official_layout(version, tmp_path):
    source = movielens_files.write(tmp_path / "raw", version)
    data = load(movielens(source, tmp_path, version))
    assert timelines(data) == EXPECTED
    assert data.items.ids == ("", "", "10", "20", "30")
    assert data.items.titles[2:] == ("Amélie (2001)", "Heat, The\x85 (1995)", "Unrated (1999)")
    assert data.items.genres[2:] == (("Comedy", "Romance"), ("Action",), ())
    years = ("", "?", *data.vocabularies["year"].values)
    assert [years[i] for i in data.items.features["year"][2:]] == ["2001", "1995", "1999"]


def test_a_film_whose_title_names_no_year_has_none(tmp_path):
    source = movielens_files.write(tmp_path / "raw", "1m")
    path = source / "movies.dat"
    path.write_bytes(path.read_bytes().replace(b" (1995)", b" (1995) II"))
    data = load(movielens(source, tmp_path))
    years = data.vocabularies["year"].values
    assert years == ("1999", "2001")
    assert data.items.features["year"].tolist() == [0, 0, 3, 0, 2]


def test_movielens_sorts_users_and_items_by_number(tmp_path):
    ratings = [(user, 10, 3, 5) for user in (10, 9, 100)]
    source = movielens_files.write(tmp_path / "raw", "1m", ratings=ratings)
    assert load(movielens(source, tmp_path)).users == ("9", "10", "100")


def test_a_zip_reads_like_its_folder(tmp_path):
    source = movielens_files.write(tmp_path / "ml-1m", "1m")
    with zipfile.ZipFile(tmp_path / "ml-1m.zip", "w") as archive:
        for path in source.iterdir():
            archive.write(path, f"ml-1m/{path.name}")
    zipped = movielens(tmp_path / "ml-1m.zip", tmp_path)
    assert load(zipped).hash == load(movielens(source, tmp_path)).hash


def test_a_truncated_zip_is_refused(tmp_path):
    path = tmp_path / "ml-1m.zip"
    path.write_bytes(b"PK\x03\x04 and then the line went dead")
    with pytest.raises(ValueError, match=r"ml-1m\.zip is not a whole zip file"):
        movielens(path, tmp_path)


def test_plots_beside_the_movies_become_their_text(tmp_path):
    source = movielens_files.write(tmp_path / "raw", "1m")
    fields = "::".join(["10", "Amélie", *["x"] * 7, "A waitress helps.", "http://x"])
    (source / "movies_plots.dat").write_bytes(f"{fields}\r\n11::broken\r\n".encode())
    folder = movielens(source, tmp_path)
    assert load(folder).items.texts == ("", "", "A waitress helps.", "", "")
    assert "movies_plots.dat: 1 malformed lines dropped" in remarks(folder)


def test_what_differs_from_the_official_counts_is_told(tmp_path, caplog):
    folder = movielens(movielens_files.write(tmp_path / "raw", "1m"), tmp_path)
    told = "differs from the official 1m: 6 ratings instead of 1,000,209, 2 users instead of 6,040"
    assert told in remarks(folder)
    assert told in caplog.text
    latest = movielens_files.write(tmp_path / "latest", "latest-small")
    assert remarks(movielens(latest, tmp_path, "latest-small")) == ""


@pytest.mark.parametrize("version", ["100k", "1m", "20m"])
def test_garbage_lines_are_dropped_and_counted(version, tmp_path):
    source = movielens_files.write(tmp_path / "raw", version)
    path = next(source.glob("[ur]*.d*")) if version == "100k" else next(source.glob("ratings.*"))
    with path.open("ab") as file:
        file.write(b"1\n\xff\xfe garbage\nx,y,z,w\na::b::c::d\n1::2::nine::4\nx\ty\tz\tw\n")
    folder = movielens(source, tmp_path, version)
    assert timelines(load(folder)) == EXPECTED
    assert f"{path.name}: 6 malformed lines dropped, such as" in remarks(folder)


def test_a_file_that_ends_inside_a_line_is_told_to_be_truncated(tmp_path):
    source = movielens_files.write(tmp_path / "raw", "1m")
    path = source / "ratings.dat"
    path.write_bytes(path.read_bytes()[:-4])  # the last timestamp would still be a number
    folder = movielens(source, tmp_path)
    assert timelines(load(folder)) == {"1": EXPECTED["1"][:2], "2": EXPECTED["2"]}
    assert "ratings.dat ends inside a line, which is dropped: it is truncated" in remarks(folder)


def test_repeated_ratings_count_once_and_repeated_viewings_stay(tmp_path):
    ratings = [*movielens_files.RATINGS, movielens_files.RATINGS[1], (1, 10, 2, 978387160)]
    source = movielens_files.write(tmp_path / "raw", "1m", ratings=ratings)
    folder = movielens(source, tmp_path)
    assert timelines(load(folder))["1"] == [*EXPECTED["1"], (10, 2, 978387160)]
    assert "1 events repeat an earlier one" in remarks(folder)


def test_movies_that_are_not_described_keep_a_blank_row(tmp_path):
    source = movielens_files.write(tmp_path / "raw", "1m", movies=movielens_files.MOVIES[1:])
    folder = movielens(source, tmp_path)
    data = load(folder)
    assert timelines(data) == EXPECTED
    assert (data.items.ids[2], data.items.titles[2], data.items.genres[2]) == ("10", "", ())
    assert "1 of 3 items that occur in events are not described, such as '10'" in remarks(folder)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "ratings.dat holds no ratings"),
        (b"nothing\nto\nread\n", "ratings.dat holds no rating that can be read"),
        (None, "lacks ratings.dat"),
    ],
)
def test_files_without_ratings_are_refused_and_leave_nothing(content, told, tmp_path):
    source = movielens_files.write(tmp_path / "raw", "1m")
    (source / "ratings.dat").unlink()
    if content is not None:
        (source / "ratings.dat").write_bytes(content)
    with pytest.raises(ValueError, match=told):
        movielens(source, tmp_path)
    assert not list(tmp_path.glob("built/*"))


def test_a_csv_without_its_columns_is_refused(tmp_path):
    source = movielens_files.write(tmp_path / "raw", "20m")
    (source / "ratings.csv").write_text("userId,movieId,timestamp\n1,10,978300760\n")
    with pytest.raises(ValueError, match="must begin with the line userId,movieId,rating,times"):
        movielens(source, tmp_path, "20m")


def test_unknown_builders_versions_and_sources_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no builder is named 'netflix'; choose from amazon"):
        build("netflix", source=None, data_dir=tmp_path)
    with pytest.raises(ValueError, match="no version '2m'; choose from 100k, 1m"):
        build("movielens", source=tmp_path, data_dir=tmp_path, version="2m")
    with pytest.raises(ValueError, match="needs its official files"):
        build("movielens", source=tmp_path / "no", data_dir=tmp_path, version="1m")
    with pytest.raises(ValueError, match="the world is made, not read from a source"):
        build("world", source=tmp_path, data_dir=tmp_path)
    with pytest.raises(ValueError, match="no version 'snobs'; there are fans, critics"):
        build("world", source=None, data_dir=tmp_path, version="snobs")


def test_a_data_set_is_built_once_and_anew_when_its_source_changes(tmp_path):
    source = movielens_files.write(tmp_path / "raw", "1m")
    first = movielens(source, tmp_path)
    time = (first / "counts.json").stat().st_mtime_ns
    assert movielens(source, tmp_path) == first
    assert (first / "counts.json").stat().st_mtime_ns == time
    movielens_files.write(source, "1m", ratings=movielens_files.RATINGS[:-1])
    assert movielens(source, tmp_path) != first
    assert fingerprint(first) != fingerprint(movielens(source, tmp_path))


def test_the_same_source_gives_the_same_bytes(tmp_path):
    source = movielens_files.write(tmp_path / "raw", "1m")
    folders = [
        build("movielens", source=source, data_dir=tmp_path / name, version="1m") for name in "ab"
    ]
    assert fingerprint(folders[0]) == fingerprint(folders[1])


def test_a_build_that_fails_midway_leaves_nothing(tmp_path, monkeypatch):
    whole = World.timelines

    def broken(self):
        yield next(whole(self))
        raise OSError("no space left on device")

    monkeypatch.setattr(World, "timelines", broken)
    with pytest.raises(OSError, match="no space left"):
        build("world", source=None, data_dir=tmp_path / "built", users=2)
    assert not list((tmp_path / "built").iterdir())


def test_rows_that_were_not_written_are_noticed(tmp_path, monkeypatch):
    whole = World.timelines

    def short(self):
        yield from list(whole(self))[:-1]

    monkeypatch.setattr(World, "timelines", short)
    with pytest.raises(RuntimeError, match="2 of 3 timelines were written"):
        build("world", source=None, data_dir=tmp_path, users=3)


def test_building_and_loading_need_no_tensorflow(tmp_path):
    code = (
        "import sys; from pathlib import Path; from user_llm.data.builders import build\n"
        "assert 'tensorflow_datasets' not in sys.modules\n"
        "from user_llm.data.dataset import load\n"
        f"load(build('world', source=None, data_dir=Path({str(tmp_path)!r}), users=2))\n"
        "assert 'tensorflow' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def test_the_world_is_stored_as_it_is(tmp_path):
    folder = build("world", source=None, data_dir=tmp_path, users=5, seed=3)
    data, world = load(folder), World(users=5, seed=3)
    for u, made in enumerate(world.timelines()):
        events = slice(*data.offsets[u : u + 2])
        assert data.users[u] == made["user"]
        assert [data.items.ids[i] for i in data.item[events]] == made["item"]
        assert data.reviews[events] == made["review"]
        np.testing.assert_array_equal(data.times[events], made["timestamp"])
        np.testing.assert_array_equal(data.ratings[events], made["rating"])
    films = {film["item"]: film for film in world.items()}
    for id, title, genres, text in list(
        zip(data.items.ids, data.items.titles, data.items.genres, data.items.texts, strict=True)
    )[2:]:
        film = films[id]
        assert (title, list(genres), text) == (film["title"], film["genres"], film["text"])


def test_a_table_of_ones_own_is_read_by_its_schema(tmp_path):
    folder = built_table(table(tmp_path / "mine"), tmp_path)
    data = load(folder)
    assert data.users == ("a", "b")
    assert data.times.tolist() == [60, 70, 50]
    assert [data.items.ids[i] for i in data.item] == ["007", "12", "007"]
    assert data.items.titles[2:] == ("Flöte", "Drum")
    np.testing.assert_array_equal(data.ratings, [5, np.nan, 4])
    assert data.features["tags"].tolist() == [[3, 0], [0, 0], [2, 3]]
    assert data.features["image"].tolist() == [[3, 4, 1], [0, 0, 0], [1, 2, 1]]
    assert data.features["price"][:, 1].tolist() == [1, 0, 1]
    assert data.items.features["brand"].tolist() == [0, 0, 0, 2]
    assert data.items.features["weight"].tolist() == [[0, 0], [0, 0], [0, 0], [0, 1]]
    assert "the events of 1 users are not in time order" in remarks(folder)
    assert data.reviews is None


def test_parquet_and_csv_read_like_json_lines(tmp_path):
    schema = {**SCHEMA, "features": [f for f in SCHEMA["features"] if f["name"] != "image"]}
    events = [{k: v for k, v in row.items() if k != "image"} for row in EVENTS]
    lines = table(tmp_path / "lines", events=events, schema=schema)
    parquet = table(tmp_path / "parquet", events=None, items=None, schema=schema)
    stamped = [{**row, "time": datetime.fromtimestamp(row["time"], UTC)} for row in events]
    pq.write_table(pa.Table.from_pylist(stamped), parquet / "events.parquet")
    pq.write_table(pa.Table.from_pylist(ITEMS), parquet / "items.parquet")
    comma = table(tmp_path / "csv", events=None, items=None, schema=schema)
    (comma / "events.csv").write_text(
        "\ufeffreviewer,asin,time,price,tags,rating\nb,007,1970-01-01T00:00:50,2.5,x|y,4\n"
        "a,12,1970-01-01T00:01:10Z,,,\na,007,60,1.0,y,5\n",
        encoding="utf-8",
    )
    (comma / "items.csv").write_text(
        'asin,title,brand,weight\n12,Drum,acme,3.5\n007,"Flöte",,\n', encoding="utf-8"
    )
    hashes = {load(built_table(f, tmp_path)).hash for f in (lines, parquet, comma)}
    assert len(hashes) == 1


def test_whole_numbers_stay_numbers_and_large_ids_keep_their_digits(tmp_path):
    big = 2**53 + 1
    events = [{"user": 10, "item": big, "timestamp": 5}, {"user": 9, "item": 3, "timestamp": 5}]
    schema = {"features": [{"kind": "categorical", "name": "item"}]}
    data = load(
        built_table(table(tmp_path / "t", events=events, items=None, schema=schema), tmp_path)
    )
    assert data.users == ("9", "10")
    assert data.items.ids[2:] == ("3", str(big))


def test_items_of_a_table_that_occur_undescribed_or_twice_are_told(tmp_path):
    items = [ITEMS[0], {**ITEMS[0], "title": "Other"}]
    folder = built_table(table(tmp_path / "mine", items=items), tmp_path)
    data = load(folder)
    assert data.items.titles[2:] == ("", "Drum")
    assert "1 of 2 items that occur in events are not described, such as '007'" in remarks(folder)
    assert "1 items are described twice; the first one counts" in remarks(folder)


def test_events_that_repeat_in_every_column_count_once(tmp_path):
    folder = built_table(table(tmp_path / "mine", events=[*EVENTS, EVENTS[0]]), tmp_path)
    assert len(load(folder).item) == 3
    assert "1 events repeat an earlier one in every column" in remarks(folder)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"events": []}, "events.jsonl holds no events"),
        ({"events": [*EVENTS, '{"reviewer": "a", "asi']}, "1 lines that cannot be read: line 4"),
        ({"events": ["[1, 2]"]}, "line 1: not an object"),
        (
            {"events": [{**EVENTS[0], "price": "cheap"}]},
            "feature 'price', user 'b', row 1: 'cheap'",
        ),
        (
            {"events": [{**EVENTS[0], "rating": "good"}]},
            "feature 'rating', user 'b', row 1: 'good'",
        ),
        (
            {"events": [{"reviewer": "a", "time": 3}]},
            r"lacks the column\(s\) image, item, price, tags",
        ),
        ({"items": None}, "brand, weight are of items: add an items file"),
        ({"schema": {"features": []}}, "is no schema"),
        ({"events": None}, "must hold events in one file"),
    ],
)
def test_tables_that_cannot_be_read_are_refused(changes, told, tmp_path):
    with pytest.raises(ValueError, match=told):
        built_table(table(tmp_path / "mine", **changes), tmp_path)


def test_ragged_csv_and_torn_parquet_are_refused(tmp_path):
    ragged = table(tmp_path / "csv", events=None)
    (ragged / "events.csv").write_text("reviewer,asin,time\na,1,5\na,2\n")
    with pytest.raises(ValueError, match="3 columns, but 1 rows have not: row 2 has 2"):
        built_table(ragged, tmp_path)
    torn = table(tmp_path / "parquet", events=None)
    (torn / "events.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(ValueError, match="not a whole Parquet file"):
        built_table(torn, tmp_path)


def test_amazon_reviews_are_a_table(data_folder, tmp_path):
    source = tmp_path / "amazon"
    source.mkdir()
    (source / "events.json").symlink_to(
        data_folder / "amazon-musical-instruments" / "Musical_Instruments.json"
    )
    columns = {
        "user": "reviewerID",
        "item": "asin",
        "timestamp": "unixReviewTime",
        "rating": "overall",
        "review": "reviewText",
    }
    features = [{"kind": "categorical", "name": "item"}, {"kind": "text", "name": "review"}]
    (source / "schema.json").write_text(json.dumps({"features": features, "columns": columns}))
    data = load(built_table(source, tmp_path))
    assert (len(data.item), len(data.users), len(data.items.ids) - 2) == (10_261, 1_429, 900)
    assert set(data.ratings) == {1, 2, 3, 4, 5}


S3REC = "7 30 4 4\n2 9 30 x1\n"


def sequences_in(folder, text=S3REC, attributes='{"30": [1, 2], "9": []}'):
    (folder / "Toys.txt").write_text(text)
    if attributes:
        (folder / "Toys_item2attributes.json").write_text(attributes)
    return build("sequences", source=folder, data_dir=folder / "made", version="Toys")


def test_sequences_keep_their_order_their_repeats_and_their_attributes(tmp_path):
    data = load(sequences_in(tmp_path))
    assert data.users == ("7", "2")
    assert [data.items.ids[i] for i in data.item] == ["30", "4", "4", "9", "30", "x1"]
    assert data.times.tolist() == [0, 1, 2, 0, 1, 2]
    values = data.vocabularies["attributes"].values
    told = data.items.features["attributes"][data.items.ids.index("30")]
    assert sorted(values[i - 2] for i in told if i) == ["1", "2"]
    assert not data.items.features["attributes"][data.items.ids.index("9")].any()


def test_sequences_by_event_are_those_by_user(tmp_path):
    (tmp_path / "pairs").mkdir()
    (tmp_path / "rows").mkdir()
    pairs = load(sequences_in(tmp_path / "pairs", "7 30\n7 4\n2 9\n7 4\n", ""))
    rows = load(sequences_in(tmp_path / "rows", "7 30 4 4\n2 9\n", ""))
    assert pairs.hash == rows.hash


@pytest.mark.parametrize(
    ("text", "attributes", "told"),
    [
        ("", "", "holds no sequences"),
        ("7 30 4\n8\n", "", "not so line 2"),
        ("7 30 4\n7 9 4\n", "", "two lines of user 7"),
        (S3REC, "[1]", "must map items to lists of attributes"),
        (S3REC, "{", "must map items to lists of attributes"),
    ],
)
def test_what_is_no_sequence_is_refused(text, attributes, told, tmp_path):
    with pytest.raises(ValueError, match=told):
        sequences_in(tmp_path, text, attributes)


def test_a_version_without_its_file_names_those_there_are(tmp_path):
    (tmp_path / "Beauty.txt").write_text(S3REC)
    with pytest.raises(ValueError, match="needs the file Toys.txt in .* versions there: Beauty"):
        build("sequences", source=tmp_path, data_dir=tmp_path, version="Toys")


def test_the_published_amazon_sequences_have_their_published_counts(data_folder, tmp_path):
    source = data_folder / "s3rec"
    data = load(build("sequences", source=source, data_dir=tmp_path, version="Beauty"))
    counts = len(data.users), len(data.items.ids) - 2, len(data.item)
    assert counts == (22_363, 12_101, 198_502)
    first = (source / "Beauty.txt").read_text().splitlines()[0].split()
    user = data.users.index(first[0])
    events = data.item[data.offsets[user] : data.offsets[user + 1]]
    assert [data.items.ids[i] for i in events] == first[1:]
