"""Writes small MovieLens data sets in the official layouts, from one list of ratings and movies."""

from pathlib import Path

RATINGS = [  # user, movie, rating, timestamp; the last two of user 2 share a second
    (2, 30, 4, 978300100),
    (1, 10, 5, 978300760),
    (1, 20, 3, 978300000),
    (2, 10, 1, 978300300),
    (2, 20, 2, 978300300),
    (1, 30, 4, 978387160),
]
MOVIES = [
    (10, "Amélie (2001)", ["Comedy", "Romance"]),
    (20, "Heat, The\x85 (1995)", ["Action"]),
    (30, "Unrated (1999)", []),
]
PLACES = {"Action": 1, "Comedy": 5, "Romance": 14}  # of the genres among u.item's 19 flags


def write(folder: Path, version: str, ratings=RATINGS, movies=MOVIES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if version == "100k":
        rows = [f"{m}|{t}|01-Jan-1995||http://x|" + _flags(g) for m, t, g in movies]
        _put(folder / "u.data", ["\t".join(map(str, r)) for r in ratings], "latin-1")
        _put(folder / "u.item", rows, "latin-1")
    elif version in ("1m", "10m"):
        encoding = "latin-1" if version == "1m" else "utf-8"
        _put(folder / "ratings.dat", ["::".join(map(str, r)) for r in ratings], encoding)
        rows = [f"{m}::{t}::{'|'.join(g)}" for m, t, g in movies]
        _put(folder / "movies.dat", rows, encoding)
    else:
        rows = [f'{m},"{t}",{"|".join(g) or "(no genres listed)"}' for m, t, g in movies]
        lines = [",".join(map(str, r)) for r in ratings]
        _put(folder / "ratings.csv", ["userId,movieId,rating,timestamp", *lines], "utf-8")
        _put(folder / "movies.csv", ["movieId,title,genres", *rows], "utf-8")
    return folder


def _flags(genres: list[str]) -> str:
    places = {PLACES[genre] for genre in genres}
    return "|".join(str(int(place in places)) for place in range(19))


def _put(path: Path, lines: list[str], encoding: str):
    path.write_bytes("".join(line + "\n" for line in lines).encode(encoding))
