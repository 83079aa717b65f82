"""What a function multiplies, by what JAX traces of it."""

from math import prod

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def products(f, *args):
    """Two for each multiplication of the products that a function traces, scans unrolled."""

    def count(jaxpr):
        total = 0
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "dot_general":
                (contracted, _), _ = eqn.params["dimension_numbers"]
                shape = eqn.invars[0].aval.shape
                total += 2 * prod(eqn.outvars[0].aval.shape) * prod(shape[i] for i in contracted)
            times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
            total += times * sum(count(inner) for inner in programs(eqn.params))
        return total

    def programs(params):
        for leaf in jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, (Jaxpr, ClosedJaxpr))):
            if isinstance(leaf, (Jaxpr, ClosedJaxpr)):
                yield getattr(leaf, "jaxpr", leaf)

    return count(jax.make_jaxpr(f)(*args).jaxpr)
