"""Google Local, reviews of places in UCSD's files: a state of 2021, or the whole of 2018.

2021: Li, Shang and McAuley 2022, and Yan et al. 2023. 2018: He, Kang and McAuley 2017, and Pasricha
and McAuley 2018.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np

from user_llm.data.builders import lines, reviews
from user_llm.data.builders.base import Raw, Record, timelines
from user_llm.data.builders.reviews import Layout, ReviewBuilder


class GoogleLocal(ReviewBuilder, skip_registration=True):
    """Reviews as events; an item is a place, and its genres are its categories.

    In 2018 these are told by the reviews of a place: the first ones count.
    """

    name = "google_local"
    layouts: ClassVar = {
        "2021": Layout(
            reviews=("review-*.json",),
            items="meta-*.json",
            user="user_id",
            item="gmap_id",
            rating="rating",
            time="time",
            text="text",
            ticks=1000,
        ),
        "2018": Layout(
            reviews=("reviews.clean.json",),
            items="places.clean.json",
            user="gPlusUserId",
            item="gPlusPlaceId",
            rating="rating",
            time="unixReviewTime",
            text="reviewText",
            form="Python",
            items_form="Python",
        ),
    }

    @classmethod
    def read(cls, source: Path, version: str) -> Raw:
        layout, remarks = cls.layout(version), []
        paths, item_paths = reviews.find(source, layout)
        categories: dict[str, list[str]] = {}
        rows = _noting(categories, reviews.rows(paths, layout, remarks), layout)
        events = reviews.events(rows, layout, remarks)
        rows = reviews.descriptions(item_paths, layout, remarks)
        items = reviews.items(rows, layout, _describe, np.unique(events["item"]), remarks)
        items = [i | {"genres": i["genres"] or categories.get(i["item"], [])} for i in items]
        users = len(np.unique(events["user"]))
        return Raw(reviews.SCHEMA, users, timelines(events), items, remarks)


def _noting(
    categories: dict[str, list[str]], rows: Iterable[lines.Row], layout: Layout
) -> Iterator[lines.Row]:
    """The same reviews, while the first categories that they tell of each place are noted."""
    for row in rows:
        if told := row.get("categories"):
            categories.setdefault(row[layout.item], lines.distinct(told))
        yield row


def _describe(row: lines.Row) -> Record:
    return {
        "title": lines.plain(row.get("name")),
        "genres": lines.distinct(row.get("category")),
        "text": lines.plain(row.get("description")),
    }
