"""Amazon reviews in the files of McAuley Lab's releases of 2014, 2018 and 2023, a category each.

2014: McAuley et al. 2015, and He and McAuley 2016. 2018: Ni, Li and McAuley 2019. 2023: Hou et al.
2024 (arXiv 2403.03952); `2023_timelines` is a sample of it, in which a line has a user's reviews in
one category, the last of them held out.
"""

from itertools import takewhile
from pathlib import Path
from typing import ClassVar

import numpy as np

from user_llm.data.builders import lines, reviews
from user_llm.data.builders.base import Raw, Record, timelines
from user_llm.data.builders.reviews import Layout, ReviewBuilder

YEAR_2014 = Layout(
    reviews=("*.json",),
    items="meta_*.json",
    user="reviewerID",
    item="asin",
    rating="overall",
    time="unixReviewTime",
    text="reviewText",
    summary="summary",
    items_form="Python",
)
YEAR_2023 = Layout(
    reviews=("*.jsonl",),
    items="meta_*.jsonl",
    user="user_id",
    item="parent_asin",
    rating="rating",
    time="timestamp",
    text="text",
    ticks=1000,
)


def _timeline(row: lines.Row) -> list[lines.Row]:
    """The reviews of a line of the timelines, each with its user and what is told of its item."""
    told = {"user_id": row["user_id"], "categories": row["category"].replace("_", " ")}
    events = [*row["history"], row["heldout"]]
    return [{**event, **told, "title": event["product"]["title"]} for event in events]


TIMELINES = YEAR_2023._replace(
    reviews=("training.jsonl", "validation.jsonl", "test.jsonl"),
    items="",
    time="timestamp_ms",
    text="review_full",
    unfold=_timeline,
)
SCRIPT = "getTime"  # in what the release of 2018 has for some titles
MARKUP = "</span>"  # where its categories end, and pieces of the product's page follow


class AmazonReviews(ReviewBuilder, skip_registration=True):
    """Reviews as events; an item is an asin, in 2023 the `parent_asin` that its variants share.

    Genres are an item's categories, the widest first. Where all items share that first one it is
    left out: it tells nothing of an item, and would be everyone's favourite. An item without a
    title keeps an empty one, as in all data sets.
    """

    name = "amazon_reviews"
    layouts: ClassVar = {
        "2014": YEAR_2014,
        "2018": YEAR_2014._replace(items_form="JSON"),
        "2023": YEAR_2023,
        "2023_timelines": TIMELINES,
    }

    @classmethod
    def read(cls, source: Path, version: str) -> Raw:
        layout, remarks = cls.layout(version), []
        paths, item_paths = reviews.find(source, layout)
        events = reviews.events(reviews.rows(paths, layout, remarks), layout, remarks)
        if layout.items:
            rows = reviews.descriptions(item_paths, layout, remarks)
        else:
            rows = reviews.rows(paths, layout, [])  # their remarks are made
        items = reviews.items(rows, layout, _describe, np.unique(events["item"]), remarks)
        users = len(np.unique(events["user"]))
        return Raw(reviews.SCHEMA, users, timelines(events), _without_root(items), remarks)


def _describe(row: lines.Row) -> Record:
    title = lines.plain(row.get("title"))
    categories = lines.flat(row.get("categories") or row.get("category"))  # 2018: the singular
    return {
        "title": "" if SCRIPT in title else title,
        "genres": lines.distinct(list(takewhile(lambda text: MARKUP not in text, categories))),
        "text": lines.plain(row.get("description")),
    }


def _without_root(items: list[Record]) -> list[Record]:
    """The items without the first of their genres, unless they differ in it."""
    if len({item["genres"][0] for item in items if item["genres"]}) > 1:
        return items
    return [item | {"genres": item["genres"][1:]} for item in items]
