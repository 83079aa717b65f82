"""A system as programs that run without this package, on CPUs, GPUs and TPUs (see `bundle`)."""

import shutil
import zipfile
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export

from user_llm.data import frame, unseen
from user_llm.huggingface.tensors import by_name
from user_llm.inference.generate import Crossed, Generator, forward
from user_llm.models.attention import KVCache
from user_llm.models.layers import Memory
from user_llm.serving import bundle, sealed
from user_llm.serving.leaving import TESTED, Leaving, tested
from user_llm.serving.served import DATA, Served, with_own

FORMAT = "stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")
TOKENIZER, RUN = "tokenizer", "run.py"


class Programs(NamedTuple):
    """What is exported of a system: functions of named parameters."""

    functions: dict[str, Callable[..., Any]]
    params: dict[str, dict[str, Any]]
    told: dict[str, Any]  # what stands of them in the index


def write(leaving: Leaving, folder: Path) -> None:
    """Writes a system's programs, which `load` and the `run.py` beside them answer by.

    Raises:
      ValueError: there is something already, the system cannot be exported (see `Leaving`), or the
        package that writes programs is missing.
    """
    if find_spec("flatbuffers") is None:
        raise ValueError(f"{FORMAT} is written with flatbuffers; install the extra `serve`")
    served = leaving.served
    made = programs(served)
    test = self_test(served)
    exported = lowered(made, test)
    told = leaving.told | {"jax": jax.__version__, "platforms": PLATFORMS} | made.told

    def fill(new: Path) -> None:
        for name, program in exported.items():
            (new / f"{name}.bin").write_bytes(program.serialize())
        named = {f"{part}.{n}": x for part, own in made.params.items() for n, x in own.items()}
        save_arrays(new / bundle.PARAMS, named)
        calls = {name: program.call for name, program in exported.items()}
        found = bundle.Bundle(told, made.params, calls).found(test)
        save_arrays(new / bundle.TEST, test | {f"found.{name}": x for name, x in found.items()})
        frame.write(served.dataset, new / DATA)
        served.tokenizer.save(new / TOKENIZER)
        shutil.copyfile(bundle.__file__, new / RUN)
        write_reader(new / bundle.READER)

    sealed.sealed(folder, FORMAT, fill, told)


def load(folder: Path) -> bundle.Bundle:
    """The programs in an export's folder.

    Raises:
      ValueError: the folder is not as it was written, or the programs do not find here what they
        found where they were exported.
    """
    sealed.opened(folder, FORMAT)
    return bundle.Bundle.load(folder)


def programs(served: Served) -> Programs:
    """The functions of a system: `encode` where it reads users, `prefill` and `step`."""
    model = nnx.eval_shape(lambda: served.make_model(rngs=nnx.Rngs(0)))
    graphdef, abstract = nnx.graphdef(model), nnx.to_pure_dict(nnx.state(model))
    system, config = model.system, model.decoder.config
    generator = Generator(nnx.merge(graphdef, served.params).speaker())
    apart = {"decoder", "item_tokens"}  # of which the encoder needs nothing
    own = {k: v for k, v in served.params.items() if k not in apart}
    params = {"encode": by_name(own), "decode": by_name(generator.params)}
    unstacked = jax.eval_shape(lambda: generator.params)

    def encode(params, events, segments):
        whole: Any = nnx.merge(graphdef, with_own(abstract, params))
        memory = whole.fuse(whole.memories({"events": events, "segments": segments}))
        return {"tokens": memory.tokens, "mask": memory.mask}

    def prefill(params, *read):
        return _prefill(generator.graph.merge(with_own(unstacked, params)), system.crossed, *read)

    def step(params, *read):
        return _step(generator.graph.merge(with_own(unstacked, params)), *read)

    functions = {"encode": encode, "prefill": prefill, "step": step}
    if not system.remembers:
        del functions["encode"], params["encode"]
    # Tokens that stand before each prompt: the Perceiver's, and the newest event.
    before = system.perceiver.latents + 1 if system.remembers and not system.crossed else 0
    kinds = {
        f"{part}.{name}": str(x.dtype) for part, own in params.items() for name, x in own.items()
    }
    told = {
        "programs": list(functions),
        "params": kinds,
        "dtype": str(jnp.dtype(config.dtype)),
        "before": before,
        "stop": served.tokenizer.eos,
        "events": min(served.told.history, served.told.encoder.window),
        "positions": config.max_position_embeddings,
    }
    return Programs(functions, params, told)


def lowered(made: Programs, test: bundle.Test) -> dict[str, export.Exported]:
    """The functions for every platform, and for any size but the widths of a system's parts."""
    functions, found, memory = made.functions, {}, {}
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), made.params)

    def program(name, params, *read, sizes=()):
        """One function of arrays whose shapes may be symbols, each of a program its own."""
        scope = export.SymbolicScope(sizes)

        def own(x):
            shape = export.symbolic_shape(", ".join(map(str, x.shape)), scope=scope)
            return jax.ShapeDtypeStruct(shape, x.dtype)

        read = (params, *jax.tree.map(own, read))
        function = jax.jit(functions[name])
        found[name] = export.export(function, platforms=PLATFORMS)(*read)
        return jax.eval_shape(function, *read)

    def ids(shape):
        return jax.ShapeDtypeStruct(export.symbolic_shape(shape), np.int32)

    if "encode" in functions:
        b, n = ids("b, n").shape
        told = bundle.events_of(test)
        events = {k: jax.ShapeDtypeStruct((b, n, *x.shape[2:]), x.dtype) for k, x in told.items()}
        memory = program("encode", params["encode"], events, ids("b, n"))
    read = ids("b, t"), ids("b"), ids("s"), memory
    sizes = [f"s >= t + {made.told['before']}"]
    _, state = program("prefill", params["decode"], *read, sizes=sizes)
    program("step", params["decode"], state, ids("b"))
    return found


def _prefill(decoder, crossed, tokens, lengths, there, memory):
    """As `Generator.prefill`, but that the state has as many slots as `there` [s] has numbers."""
    x, seen = decoder.embed(tokens), None
    if memory:
        memory = Memory(memory["tokens"].astype(x.dtype), memory["mask"])
    if memory and crossed:
        seen = Crossed([cross.keys_values(memory) for cross in decoder.cross], memory.mask)
    elif memory:  # which then has no holes
        x = jnp.concatenate([memory.tokens, x], axis=1)
        lengths = lengths + memory.tokens.shape[1]
    at = jnp.arange(x.shape[1])[None]
    # Kernels want to know lengths: a mask that promises nothing is left to XLA.
    views = decoder.views(at, at[:, None] <= at[..., None], slots_at=at)
    x, caches = forward(decoder, x, views, [None] * len(decoder.layers), seen)

    def roomy(made):  # [b, K, t, H] -> [b, K, s, H]
        empty = jnp.zeros((*made.shape[:2], there.shape[0], made.shape[3]), made.dtype)
        return jax.lax.dynamic_update_slice(empty, made, (0, 0, 0, 0))

    last = jnp.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)[:, 0]
    state = {"caches": jax.tree.map(roomy, _plain(caches)), "lengths": lengths}
    if seen:
        state |= {"crossed": _plain(seen.layers), "mask": seen.mask}
    return decoder.logits(last), state


def _step(decoder, state, tokens):
    """As `Generator.step`, of a state of `_prefill`."""
    caches, seen = [KVCache(**x) for x in state["caches"]], None
    if "crossed" in state:
        seen = Crossed([KVCache(**x) for x in state["crossed"]], state["mask"])
    there = jnp.arange(caches[0].keys.shape[2])[None]
    at = state["lengths"][:, None]
    views = decoder.views(at, there <= at[..., None], slots_at=there)
    x, caches = forward(decoder, decoder.embed(tokens[:, None]), views, caches, seen)
    state = state | {"caches": _plain(caches), "lengths": state["lengths"] + 1}
    return decoder.logits(x[:, 0]), state


def _plain(caches):
    """Keys and values as nested dicts, which every process can read."""
    return [{"keys": keys, "values": values} for keys, values in caches]


def self_test(served: Served) -> bundle.Test:
    """Two users, of whom one has fewer events, and two prompts, of which one is shorter."""
    events = tested(served.dataset)
    data = unseen.encode(served.dataset, [events, events[: TESTED // 2]])
    places = np.full((2, min(TESTED, served.told.history)), -1)
    for row, first, last in zip(places, data.offsets[:-1], data.offsets[1:], strict=True):
        own = np.arange(first, last)[-len(row) :]
        row[: len(own)] = own
    size = len(served.tokenizer)
    tokens = np.arange(2 * TESTED, dtype=np.int32).reshape(2, -1) % size
    return {
        **{f"events.{name}": x for name, x in data.gather(places).items()},
        "segments": (places >= 0).astype(np.int32),
        "tokens": tokens,
        "lengths": np.array([TESTED, TESTED // 2], np.int32),
        "next": np.array([1, 2], np.int32) % size,
    }


def save_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Writes arrays as numpy reads them: bfloat16 as the 16 bits that it is."""
    known = {name: np.asarray(x) for name, x in arrays.items()}
    plain = {n: x.view(np.uint16) if x.dtype == jnp.bfloat16 else x for n, x in known.items()}
    np.savez(path, allow_pickle=False, **plain)


def write_reader(path: Path) -> None:
    """Packs what jax reads programs with: pure Python, under the Apache License 2.0."""
    spec = find_spec("flatbuffers")
    (source,) = (spec and spec.submodule_search_locations) or [""]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for module in sorted(Path(source).glob("*.py")):
            file.write(module, Path("flatbuffers", module.name))
