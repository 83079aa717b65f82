"""With whom a user is compared at an event, and what sets the user apart from them.

Peers are events of others, `[M, P]` of them with -1 behind them. `PeerIndex.same_item` gives those
on the same item that came strictly before; all that is chosen here is chosen among such
candidates, so nothing tells of what was later.
"""

import warnings
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from user_llm.data.peer_index import pieces
from user_llm.data.timelines import Indices

Peers = Int[np.ndarray, "M P"]
Vectors = Float[np.ndarray, "N D"]
Weights = Literal["uniform", "distance", "softmax"]


def representatives(
    own: Float[np.ndarray, " D"], others: Vectors, k: int = 4, seed: int = 42
) -> Int[np.ndarray, " chosen"]:
    """The rows, in their order, of at most `k` others that stand for those unlike the own vector.

    k-means makes k + 1 clusters of all vectors. The one with the own vector is left out, and of
    each other one the member nearest to its centre is taken, of several the first (DPL, arXiv
    2503.02450, as its authors' code has it). Where there are fewer vectors than clusters, all
    others are taken.

    Raises:
      ValueError: scikit-learn is not installed.
    """
    if len(others) < k:
        return np.arange(len(others))
    vectors = np.concatenate([own[None], others])
    with _clustering() as cluster:
        means = cluster.KMeans(k + 1, random_state=seed)
        (left_out, *_), labels = np.split(np.asarray(means.fit_predict(vectors)), [1])
    distances = _distances(others, np.asarray(means.cluster_centers_))
    chosen = []
    for label in np.unique(labels[labels != left_out]):
        members = np.flatnonzero(labels == label)
        chosen.append(members[distances[members, label].argmin()])
    return np.sort(np.array(chosen, np.int64))


def representative_peers(
    vectors: Vectors, candidates: Peers, events: Int[np.ndarray, " M"], k: int = 4, seed: int = 42
) -> Int[np.ndarray, "M k"]:
    """The `representatives` among each event's candidates, by the vectors of events."""
    found = np.full((len(events), k), -1)
    for row, event, some in zip(found, events, candidates, strict=True):
        some = some[some >= 0]
        chosen = representatives(vectors[event], vectors[some], k, seed)
        row[: len(chosen)] = some[chosen]
    return found


def random_peers(
    candidates: Peers, seeds: Int[np.ndarray, " M"], most: int
) -> Int[np.ndarray, "M most"]:
    """At most `most` of each event's candidates by chance, in their order.

    The seeds are the events'; what stays the same in a data set that grows makes the same choice.
    """
    found = np.full((len(candidates), most), -1)
    for row, some, seed in zip(found, candidates, seeds, strict=True):
        some = some[some >= 0]
        chosen = np.sort(np.random.default_rng([seed, 3]).permutation(len(some))[:most])
        row[: len(chosen)] = some[chosen]
    return found


def least_similar_peers(
    vectors: Vectors, candidates: Peers, events: Int[np.ndarray, " M"], most: int
) -> Int[np.ndarray, "M most"]:
    """The candidates whose vectors have the lowest cosine with each event's, the lowest first.

    Of those that are alike the first ones are taken; a vector of zeros has a cosine of 0.
    """

    def cosine(a: Vectors, b: Vectors) -> Float[np.ndarray, " N"]:
        sizes = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        return (a * b).sum(1) / np.where(sizes > 0, sizes, 1)

    similar = np.where(candidates >= 0, _compare(vectors, candidates, events, cosine), np.inf)
    order = np.argsort(similar, axis=1, kind="stable")[:, :most]
    found = np.full((len(events), most), -1)
    found[:, : order.shape[1]] = np.take_along_axis(candidates, order, axis=1)
    return found


def running_means(
    vectors: Vectors,
    offsets: Int[np.ndarray, " offsets"],
    out: Float[np.ndarray, "N D"] | None = None,
    *,
    whole: bool = False,
) -> Float[np.ndarray, "N D"]:
    """The mean of a user's vectors up to and with each event, in float32; into `out` if given.

    With `whole` it is the mean of the whole timeline at each of its events, later ones included, as
    DEP (arXiv 2507.20849) has it: that is for comparing with its code alone. Users do not meet
    here, so millions of them go range by range.
    """
    means = np.empty(vectors.shape, np.float32) if out is None else out
    for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        # One by one, for a sum over all of them would round by who else is there.
        sums = np.cumsum(vectors[start:stop], axis=0, dtype=np.float64)
        means[start:stop] = sums / np.arange(1, stop - start + 1)[:, None]
        if whole:
            means[start:stop] = means[stop - 1]
    return means


def differences(
    vectors: Vectors,
    peers: Peers,
    events: Int[np.ndarray, " M"],
    weights: Weights = "uniform",
    *,
    means: Vectors | None = None,
    temperature: float = 1.0,
) -> tuple[Float[np.ndarray, "M D"], Bool[np.ndarray, " M"]]:
    """Each event's vector minus the weighted mean of its peers', and whether there is a peer.

    The first is zero where there is none. By a = ||m_u - m_v||, the distance of the `means` at the
    event and at the peer's (see `running_means`), `distance` weighs peers by softmax(a / sum a), as
    DEP does (arXiv 2507.20849), and `softmax` by softmax(-a / temperature).

    Raises:
      ValueError: weights by distance are asked for without means, or with a temperature that is
        not above 0.
    """
    there = peers >= 0
    paired = np.asarray(there.any(1))
    if weights == "uniform":
        weighed = _softmax(np.zeros(peers.shape), there)
    elif means is None:
        raise ValueError(f'weights "{weights}" go by users\' means; give those')
    elif temperature <= 0:
        raise ValueError(f"a temperature of {temperature} is not above 0")
    else:
        apart = _compare(means, peers, events, lambda a, b: np.linalg.norm(a - b, axis=1))
        if weights == "distance":
            total = apart.sum(1, keepdims=True)
            weighed = _softmax(apart / np.where(total > 0, total, 1), there)
        else:
            weighed = _softmax(-apart / temperature, there)
    found = np.zeros((len(events), vectors.shape[1]), np.float32)
    for part in pieces(len(events), vectors.shape[1]):
        others = np.zeros(found[part].shape)
        for place in range(peers.shape[1]):  # one at a time takes little memory, in a fixed order
            rows = np.flatnonzero(there[part, place])
            weight, peer = weighed[part, place][rows, None], peers[part, place][rows]
            others[rows] += weight * vectors[peer]
        found[part] = np.where(paired[part, None], vectors[events[part]] - others, 0)
    return found, paired


def _compare(
    vectors: Vectors, peers: Peers, events: Indices, measure: Callable[..., np.ndarray]
) -> Float[np.ndarray, "M P"]:
    """The `measure` of each event's vector and its peers', in float64; 0 where none is."""
    found = np.zeros(peers.shape)
    for part in pieces(len(events), vectors.shape[1]):
        own = vectors[events[part]].astype(np.float64)
        for place in range(peers.shape[1]):
            rows = np.flatnonzero(peers[part, place] >= 0)
            other = vectors[peers[part, place][rows]].astype(np.float64)
            found[part, place][rows] = measure(own[rows], other)
    return found


def _softmax(
    logits: Float[np.ndarray, "M P"], there: Bool[np.ndarray, "M P"]
) -> Float[np.ndarray, "M P"]:
    """Over the peers that are there; zeros where there is none."""
    highest = np.where(there, logits, -np.inf).max(1, keepdims=True, initial=-1e300)
    powers = np.exp(np.where(there, logits - highest, -np.inf))
    return powers / np.maximum(powers.sum(1, keepdims=True), np.finfo(np.float64).tiny)


def _distances(vectors: Vectors, centres: Float[np.ndarray, "C D"]) -> Float[np.ndarray, "N C"]:
    """Squared; computed row by row, so that equal vectors are equally far."""
    vectors = vectors.astype(np.float64)
    return np.stack([((vectors - centre) ** 2).sum(1) for centre in centres], axis=1)


def check_clustering() -> None:
    """Refuses to go on without what makes clusters.

    Raises:
      ValueError: scikit-learn is not installed.
    """
    _scikit_learn()


@contextmanager
def _clustering():
    """scikit-learn's clusters, made by one thread, which always sums in the same order."""
    cluster, threads, warning = _scikit_learn()
    with warnings.catch_warnings(), threads.limit(limits=1):
        warnings.simplefilter("ignore", warning)  # equal vectors make fewer clusters
        yield cluster


@cache
def _scikit_learn():
    """Its clusters, the threads of all libraries that it has loaded, and a warning of its."""
    try:
        from sklearn import cluster
        from sklearn.exceptions import ConvergenceWarning
        from threadpoolctl import ThreadpoolController
    except ImportError as error:
        raise ValueError("clusters want scikit-learn; install the extra `peers`") from error
    return cluster, ThreadpoolController(), ConvergenceWarning
