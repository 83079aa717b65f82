"""Amazon reviews in the files of McAuley Lab's releases of 2014, 2018 and 2023, a category each.

2014: McAuley et al. 2015, and He and McAuley 2016. 2018: Ni, Li and McAuley 2019. 2023: Hou et al.
2024 (arXiv 2403.03952); `2023_timelines` is a sample of it, in which a line has a user's reviews in
one category, the last of them held out; `2023_dpl` are those of its reviews that DPL's benchmark
takes (see `dpl_benchmark`).
"""

from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from user_llm.data.builders import dpl_benchmark, lines, reviews
from user_llm.data.builders.base import Raw, Record, timelines
from user_llm.data.builders.reviews import Layout, ReviewBuilder

if TYPE_CHECKING:
    from user_llm.data.builders.distributed import Plan

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


DPL = YEAR_2023._replace(summary="title")
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
        "2023_dpl": DPL,
    }

    @classmethod
    def read(cls, source: Path, version: str) -> Raw:
        layout, remarks = cls.layout(version), []
        paths, item_paths = reviews.find(source, layout)
        told = reviews.rows(paths, layout, remarks)
        if layout is DPL:
            told = filter(_is_long, told)
        events = reviews.events(told, layout, remarks)
        if layout.items:
            rows = reviews.descriptions(item_paths, layout, remarks)
        else:
            rows = reviews.rows(paths, layout, [])  # their remarks are made
        items = reviews.items(rows, layout, _describe, np.unique(events["item"]), remarks)
        if layout is DPL:
            events, items = _benchmark(events, items, remarks)
        users = len(np.unique(events["user"]))
        return Raw(reviews.SCHEMA, users, timelines(events), _without_root(items), remarks)

    @classmethod
    def plan(cls, source: Path | None, version: str, flags: list[str]) -> "Plan":
        layout = cls.layout(version)
        if not layout.items or layout is DPL:
            raise ValueError(f"{cls.name} of {version} is built by one machine; leave --beam out")
        from user_llm.data.builders.distributed import plan

        return plan(*reviews.find(source, layout), layout, _describe, flags)


def _is_long(row: lines.Row) -> bool:
    text, title = (" ".join(lines.flat(row.get(name))).strip() for name in ("text", "title"))
    return len(text) >= dpl_benchmark.LETTERS and bool(title)


def _benchmark(
    events: dict[str, np.ndarray], items: list[Record], remarks: list[str]
) -> tuple[dict[str, np.ndarray], list[Record]]:
    """The events and items of DPL's benchmark.

    Raises:
      ValueError: none is left.
    """
    low, high = dpl_benchmark.DESCRIBED
    described = {item["item"] for item in items if low <= len(item["text"]) <= high}
    keep = np.array([item in described for item in events["item"].tolist()], bool)
    told = [np.unique(events[name], return_inverse=True)[1] for name in ("user", "item", "review")]
    keep[keep] &= dpl_benchmark.once(*(column[keep] for column in told[:2]))
    keep[keep] &= dpl_benchmark.once(told[2][keep])
    keep[keep] &= dpl_benchmark.chosen(*(column[keep] for column in told[:2]))
    if not keep.any():
        raise ValueError(
            f"of {len(keep)} long reviews DPL's benchmark takes none; are there users "
            f"of {dpl_benchmark.REVIEWS[0]} and more?"
        )
    remarks.append(f"of {len(keep)} long reviews with a title DPL's benchmark takes {keep.sum()}")
    left = {name: column[keep] for name, column in events.items()}
    return left, [item for item in items if item["item"] in set(left["item"].tolist())]


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
