"""Which reviews make DPL's benchmark (arXiv 2503.02450, as its authors' data-create.py has it).

Reviews of 200 letters and more with a title, of items whose description has 100 to 2,000; one of a
user and item, no text twice. Then, until nothing changes, items of 8 users and more and users of 18
to 500 reviews; of each user the last ten are asked for, and the ones before are the profile. Then
again, profiles lose items that fewer than 5 profiles have, and users of fewer than 8 go.
"""

import numpy as np
from jaxtyping import Bool, Int

LETTERS = 200  # of a review, at least
DESCRIBED = (100, 2000)  # letters of an item's description
USERS, REVIEWS = 8, (18, 500)  # of an item, of a user
ASKED = 10  # the last reviews of each user
PROFILES, PROFILE = 5, 8  # that an item is in, and that a user has, at least

Events = Int[np.ndarray, " N"]


def once(*keys: Events) -> Bool[np.ndarray, " N"]:
    """Which events are the first with their values of these columns."""
    order = np.lexsort(keys)
    new = np.ones(len(order), bool)
    new[1:] = np.any([np.diff(key[order]) != 0 for key in keys], axis=0)
    found = np.empty(len(order), bool)
    found[order] = new
    return found


def chosen(user: Events, item: Events) -> Bool[np.ndarray, " N"]:
    """Which events, by time, are of the benchmark by how many they are, profiles and asked ones."""
    keep = np.ones(len(user), bool)

    def number(of: Events, among: Bool[np.ndarray, " N"]) -> Events:
        return np.bincount(of[among], minlength=of.max(initial=0) + 1)[of]

    def settle(among: Bool[np.ndarray, " N"], rule) -> Bool[np.ndarray, " N"]:
        while True:
            left = among & rule(among)
            if (left == among).all():
                return left
            among = left

    def frequent(among):
        left = among & (number(item, among) >= USERS)
        count = number(user, left)
        return left & (count >= REVIEWS[0]) & (count <= REVIEWS[1])

    keep = settle(keep, frequent)
    asked = keep & (_from_end(user, keep) < ASKED)

    def common(profile):
        left = profile & (number(item, profile) >= PROFILES)
        return left & (number(user, left) >= PROFILE)

    profile = settle(keep & ~asked, common)
    return profile | (asked & (number(user, profile) > 0))


def _from_end(user: Events, keep: Bool[np.ndarray, " N"]) -> Events:
    """How many kept events of the same user come after each, in the order of time."""
    order = np.argsort(user, kind="stable")
    kept = keep[order].astype(np.int64)
    later = np.cumsum(kept[::-1])[::-1] - kept  # of this and all users behind it
    starts = np.flatnonzero(np.diff(user[order], prepend=-1))
    counts = np.diff(np.append(starts, len(order)))
    behind = np.append(later, 0)[starts + counts - 1] if len(starts) else later[:0]
    found = np.empty(len(order), np.int64)
    found[order] = later - np.repeat(behind, counts)
    return found
