"""Writes small review data sets in the official layouts, from one list of reviews and of items."""

import gzip
import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

REVIEWS = [  # user, item, rating, seconds, summary, text; the last two of B share a second
    ("B", "P3", 4.0, 978300100, "Fine...", "Fine drum.\nLoud."),
    ("A", "P1", 5.0, 978300760, "Great flute", "It sings."),
    ("A", "P2", 3.0, 978300000, "So-so", None),
    ("B", "P1", 1.0, 978300300, "Broken", "My cat &#34;helped&#34;."),
    ("B", "P2", 2.0, 978300300, None, "Not mine."),
    ("A", "P3", 4.0, 978387160, "", "Für Kinder 🥁"),
]
ITEMS = [  # id, title, categories as paths, description; the last one occurs in no review
    ("P3", "Drum", [["Music", "Percussion"]], None),
    (
        "P1",
        "Amélie's Flute & Case",
        [["Music", "Wind"], ["Music", "Gifts"]],
        "A flute<br />of wood.",
    ),
    ("P2", None, None, None),
    ("P9", "Harp", [["Garden"]], None),
]
NAMES = {
    "2014": ("reviews_Music_5.json", "meta_Music.json"),
    "2018": ("Music_5.json", "meta_Music.json"),
    "2023": ("Music.jsonl", "meta_Music.jsonl"),
    "2021": ("review-Utah_10.json", "meta-Utah.json"),
    "2018_local": ("reviews.clean.json", "places.clean.json"),
}


def write(folder: Path, version: str, reviews=REVIEWS, items=ITEMS, gz: bool = False) -> Path:
    """The files of an Amazon release, or of one of Google Local: 2021 or 2018_local."""
    described = {item: list(chain.from_iterable(paths or ())) for item, _, paths, _ in items}
    told = [_review(version, *review, described.get(review[1])) for review in reviews]
    names = NAMES[version]
    put(folder / names[0], [(repr if version == "2018_local" else json.dumps)(r) for r in told], gz)
    form = repr if version in ("2014", "2018_local") else json.dumps
    if items:
        put(folder / names[1], [form(_item(version, *item)) for item in items], gz)
    return folder


def timelines(folder: Path, **splits: Sequence[tuple[str, str, Sequence[tuple]]]) -> Path:
    """The sample of 2023: by split, users' lines, each with its category and reviews."""
    for split in ("training", "validation", "test"):
        put(folder / f"{split}.jsonl", [_timeline(*line) for line in splits.get(split, ())])
    return folder


def put(path: Path, lines: list[str], gz: bool = False):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(line + "\n" for line in lines).encode()
    path.with_name(path.name + ".gz" * gz).write_bytes(gzip.compress(data) if gz else data)


def _review(version, user, item, rating, seconds, summary, text, categories):
    if version in ("2014", "2018"):
        row = {"reviewerID": user, "asin": item, "reviewerName": "Ann", "overall": rating}
        row |= {"unixReviewTime": seconds, "reviewTime": "12 31, 2000"}
        row |= {"verified": True, "style": {"Size:": " L"}} if version == "2018" else {}
        return row | _present(summary=summary, reviewText=text)
    if version == "2023":
        row = {"rating": rating, "title": summary or "", "text": text or "", "images": []}
        row |= {"asin": f"{item}-red", "parent_asin": item, "user_id": user}
        return row | {"timestamp": seconds * 1000 + 7, "helpful_vote": 0, "verified_purchase": True}
    if version == "2021":
        row = {"user_id": user, "name": "Ann", "time": seconds * 1000 + 7, "rating": int(rating)}
        return row | {"text": text, "pics": None, "resp": None, "gmap_id": item}
    row = {"rating": rating, "reviewerName": "Ann", "reviewText": text, "categories": categories}
    row |= {"gPlusPlaceId": item, "unixReviewTime": seconds, "reviewTime": "Dec 31, 2000"}
    return row | {"gPlusUserId": user}


def _item(version, item, title, paths, description):
    flat = list(dict.fromkeys(chain.from_iterable(paths or ())))
    if version == "2014":
        row = _present(title=title, description=description, categories=paths)
        return {"asin": item, "price": 9.5, "brand": "Acme"} | row
    if version == "2018":
        escaped = title and title.replace("&", "&amp;").replace("'", "&#39;")
        row = {"category": flat, "tech1": "", "description": [description] if description else []}
        return row | _present(title=escaped) | {"main_cat": "Music", "asin": item}
    if version == "2023":
        row = {"main_category": "Music", "title": title, "average_rating": 4.5, "features": []}
        row |= {"description": [description] if description else [], "price": None}
        return row | {"store": None, "categories": flat, "parent_asin": item}
    if version == "2021":
        row = {"name": title, "address": "Main St", "gmap_id": item, "description": description}
        return row | {"category": flat or None, "avg_rating": 4.5, "price": None}
    row = {"name": title, "price": None, "address": ["Main St"], "hours": None, "phone": None}
    return row | {"closed": False, "gPlusPlaceId": item, "gps": [1.5, 2.5]}


def _timeline(user, category, reviews):
    *history, heldout = [
        {
            "parent_asin": item,
            "rating": rating,
            "timestamp_ms": seconds * 1000 + 7,
            "review_excerpt": (text or "")[:4],
            "review_full": text or "",
            "review_title": summary or "",
            "product": {"title": titles.get(item), "brand": None, "price": None},
        }
        for titles in [{item: title for item, title, _, _ in ITEMS}]
        for _, item, rating, seconds, summary, text in reviews
    ]
    row = {"user_id": user, "category": category, "history": history, "heldout": heldout}
    return json.dumps(row)


def _present(**fields):
    return {name: value for name, value in fields.items() if value is not None}
