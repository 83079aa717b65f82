"""Raw files become complete data sets: nothing is lost, and what is wrong with them is told."""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import movielens_files
import numpy as np
import pytest
from remarks_told import remarks

from user_llm.data.builders import build
from user_llm.data.dataset import load
from user_llm.data.records import fingerprint
from user_llm.data.world import World

EXPECTED = {  # of each user: movie, rating, timestamp, by time and then by line
    "1": [(20, 3, 978300000), (10, 5, 978300760), (30, 4, 978387160)],
    "2": [(30, 4, 978300100), (10, 1, 978300300), (20, 2, 978300300)],
}


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


def movielens(source: Path, tmp_path: Path, version: str = "1m") -> Path:
    return build("movielens", source=source, data_dir=tmp_path / "built", version=version)


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


def test_nothing_is_left_where_temporary_files_are(tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    load(build("world", source=None, data_dir=tmp_path / "built", users=3))
    assert list(temporary.iterdir()) == []


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
