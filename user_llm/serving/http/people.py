"""The endpoints of users: their events, their vectors, and what they may want next."""

import base64
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter, Query

from user_llm.serving.http.border import CHANGES, REFUSALS, NotFound
from user_llm.serving.http.forms import (
    Changed,
    Deleted,
    Embedding,
    EmbeddingRequest,
    Embeddings,
    EventsRequest,
    Item,
    Items,
    RecommendationRequest,
    Recommendations,
    Recommended,
    User,
    UserId,
    UserNames,
)
from user_llm.serving.http.here import Here, Serving
from user_llm.serving.http.words import check_model
from user_llm.serving.store import Event, Record
from user_llm.serving.users import by_time

people = APIRouter(responses=REFUSALS, tags=["users"])


@people.post("/v1/users/{user}/events", responses=CHANGES)
def append(user: UserId, form: EventsRequest, here: Here) -> Changed:
    """Adds events to a user, who begins with them if nobody knows him; the next answer knows."""
    return _changed(here.service.users.append, user, form, here)


@people.put("/v1/users/{user}/events", responses=CHANGES)
def replace(user: UserId, form: EventsRequest, here: Here) -> Changed:
    """Puts events in the place of all that a user had."""
    return _changed(here.service.users.replace, user, form, here)


@people.get("/v1/users/{user}")
def read(user: UserId, here: Here) -> User:
    """A user, with the events that are kept."""
    record = _record(user, here)
    made, service = record.made, here.service
    current = bool(made and made.model == service.users.model and made.version == record.version)
    events = [{**event, "title": service.title(event["item"])} for event in by_time(record.events)]
    facts = _facts(record, events, here)
    return User(**facts, kept=len(events), current=current, events=events)


@people.delete("/v1/users/{user}", responses=CHANGES)
def delete(user: UserId, here: Here) -> Deleted:
    """Erases a user, and all that was made of him."""
    if not here.service.users.delete(user):
        raise NotFound(f"there is no user {user!r}")
    return Deleted(user=user)


@people.get("/v1/users")
def names(here: Here, limit: int = Query(20, ge=1, le=1000)) -> UserNames:
    """Some users, those that changed last first."""
    return UserNames(users=here.service.users.store.users(limit))


@people.get("/v1/items")
def items(
    here: Here, query: str = Query("", max_length=200), limit: int = Query(20, ge=1, le=1000)
) -> Items:
    """Items whose titles have that in them."""
    found = here.service.find(query, limit)
    return Items(items=[Item(item=item, title=title) for item, title in found])


@people.post("/v1/recommendations")
def recommend(form: RecommendationRequest, here: Here) -> Recommendations:
    """The items that the model most probably names next for a user, with their log-probability."""
    known = here.service.users.store.version(form.user) > 0
    found = here.service.recommend(form.user, form.k, exclude_seen=form.exclude_seen)
    data = [Recommended(item=x.item, title=x.title, score=x.score) for x in found]
    return Recommendations(user=form.user, known=known, data=data)


@people.post("/v1/embeddings")
def embed(form: EmbeddingRequest, here: Here) -> Embeddings:
    """The vectors of users, whose ids are the input: their states, to compare or to learn from."""
    check_model(form.model, here)
    records = [_record(user, here) for user in form.input]
    if empty := [record.user for record in records if not record.events]:
        raise NotFound(f"user {empty[0]!r} has no events, and so no vector")
    found = here.service.vectors([record.events for record in records])
    data = [
        Embedding(index=n, embedding=_coded(x, form.encoding_format)) for n, x in enumerate(found)
    ]
    return Embeddings(model=here.name, data=data)


def _record(user: str, here: Serving) -> Record:
    if (record := here.service.users.store.get(user)) is None:
        raise NotFound(f"there is no user {user!r}")
    return record


def _changed(
    change: Callable[..., Record], user: str, form: EventsRequest, here: Serving
) -> Changed:
    events = [event.model_dump(exclude_none=True) for event in form.events]
    record = change(user, events, if_version=form.if_version)
    here.metrics.events.inc(len(events))
    return Changed(**_facts(record, events, here))


def _facts(record: Record, events: Sequence[Event], here: Serving) -> dict[str, Any]:
    unknown = sum(str(event["item"]) not in here.service.numbers for event in events)
    return {
        "user": record.user,
        "version": record.version,
        "told": record.told,
        "unknown": unknown,
    }


def _coded(vector: np.ndarray, how: str) -> list[float] | str:
    if how == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.tolist()
