"""A timeline's schema: which features its events have, which is the item, which are predicted.

A schema is plain JSON, so a user can write one by hand for a table of their own.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from user_llm.config import EVENT_TIME, QUERY_TIME, Config
from user_llm.data.features import Bag, Categorical, Numeric, Text, Time, missing

Of = Literal["event", "item"]
PROBLEMS = 20  # as many are told of a table at once
AnyFeature = Annotated[Categorical | Bag | Numeric | Time | Text, Field(discriminator="kind")]

# What reads the columns that every table has, and those that a table may have.
REQUIRED = {
    "event": (Categorical(name="user"), Categorical(name="item"), Time(name="timestamp")),
    "item": (Categorical(name="item", of="item"),),
}
OPTIONAL = {
    "event": (Numeric(name="rating"), Text(name="review")),
    "item": (Text(name="title"), Bag(name="genres"), Text(name="text")),
}


class TimelineSchema(Config):
    """The features of a timeline's events: which of them is the item, and which are predicted.

    A table of events has the columns `user`, `item`, `timestamp` (seconds), those that the features
    read, and optionally `rating` and `review`; one of items has `item`, those of the features, and
    optionally `title`, `genres` and `text`. `columns` says what a table calls them instead.
    """

    features: tuple[AnyFeature, ...]
    item: str = "item"
    predicted: tuple[str, ...] = ("item",)
    columns: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self):
        names = [f.name for f in self.features]
        kinds = {f.name: f for f in self.features}
        wrong = [
            f"two features are named {n!r}"
            for n in sorted({n for n in names if names.count(n) > 1})
        ]
        wrong += [
            f"the name {n!r} is taken by a column of the clock"
            for n in (EVENT_TIME, QUERY_TIME)
            if n in names
        ]
        item = kinds.get(self.item)
        if not isinstance(item, Categorical) or item.of != "event" or item.column != "item":
            wrong.append(
                f"item={self.item!r} must name a categorical feature of the event with "
                'column="item"; say in `columns` what the table calls it'
            )
        elif item.min_count > 1 or item.max_size:
            wrong.append(f"the item feature {self.item!r} must keep its whole vocabulary")
        wrong += [
            f"predicted {n!r} is not a categorical feature of this schema ({', '.join(names)})"
            for n in self.predicted
            if not isinstance(kinds.get(n), Categorical)
        ]
        bags = {(f.of, f.column) for f in self.features if isinstance(f, Bag)}
        wrong += [
            f"feature {f.name!r} reads the column {f.column!r} that another reads as a bag"
            for f in self.features
            if (f.of, f.column) in bags and not isinstance(f, Bag)
        ]
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def __getitem__(self, name: str) -> AnyFeature:
        return next(f for f in self.features if f.name == name)

    def of(self, what: Of) -> tuple[AnyFeature, ...]:
        """The features of the event or of its item, in the schema's order, without the item."""
        return tuple(f for f in self.features if f.of == what and f.name != self.item)

    def select(self, names: Sequence[str]) -> "TimelineSchema":
        """The schema of only these features and the item; of all features if none is named.

        Raises:
          ValueError: a name that is not a feature's.
        """
        known = [f.name for f in self.features]
        if strange := sorted(set(names) - set(known)):
            raise ValueError(
                f"no feature is named {', '.join(strange)}; there are {', '.join(known)}"
            )
        kept = {*names, self.item} if names else set(known)
        return self.model_copy(
            update={
                "features": tuple(f for f in self.features if f.name in kept),
                "predicted": tuple(n for n in self.predicted if n in kept),
            }
        )

    def check(self, table: Mapping[str, Sequence[Any]], of: Of = "event"):
        """Checks a table of events or of items, by column.

        Raises:
          ValueError: columns that are missing, or values that their feature cannot read, by
            feature, user (or item) and row, which counts from 1.
        """
        features = self.readers(of, table)
        if lost := sorted(set(features) - set(table)):
            raise ValueError(
                f"the table of {of}s lacks the column(s) {', '.join(lost)}; it has "
                f"{', '.join(table)}. `columns` in the schema can name them"
            )
        if wrong := list(islice(self._problems(table, of, features), PROBLEMS + 1)):
            wrong[PROBLEMS:] = ["and more"] if len(wrong) > PROBLEMS else []
            raise ValueError(f"the table of {of}s cannot be read:\n" + "\n".join(wrong))

    def readers(self, of: Of, table: Mapping[str, Any]) -> dict[str, AnyFeature]:
        """By column what it is kept as: the columns that must be there, and those that may and are.

        A column of fixed meaning, such as the rating, stays what it is whatever feature reads it.
        """
        features = {f.column: f for f in reversed(self.of(of))}
        optional = [f for f in OPTIONAL[of] if f.column in table]
        fixed = {f.column: f for f in (*REQUIRED[of], *optional)}
        same = {c: features[c] for c, f in fixed.items() if _alike(features.get(c), f)}
        return {**fixed, **{c: f for c, f in features.items() if c not in fixed}, **same}

    def _problems(
        self, table: Mapping[str, Sequence[Any]], of: Of, features: Mapping[str, AnyFeature]
    ) -> Iterator[str]:
        keys = [f.column for f in REQUIRED[of]]
        who = keys[0]
        others = [f for f in self.of(of) if f not in features.values()]
        for feature in (*features.values(), *others):
            column = feature.column
            for row, value in enumerate(table[column]):
                absent = missing(value)
                problem = "" if absent else feature.problem(value)
                if problem or (absent and column in keys):
                    yield (
                        f"feature {feature.name!r}, {who} {str(table[who][row])!r}, "
                        f"row {row + 1}: {problem or 'is missing'}"
                    )


def _alike(feature: AnyFeature | None, fixed: AnyFeature) -> bool:
    return type(feature) is type(fixed) and not getattr(feature, "vector", 0)
