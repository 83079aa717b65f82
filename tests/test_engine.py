"""The engine: whoever else is in the batch, an answer is what it would be alone."""

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_decoders import random_decoder
from test_generate import CONFIG

from user_llm.config import CrossAttentionConfig
from user_llm.inference.generate import Generator
from user_llm.inference.sampling import Sampling
from user_llm.models.layers import Memory
from user_llm.serving.engine import Busy, Closed, Engine, Request

WARM = Sampling(temperature=1.0, top_p=0.9, seed=3, repetition_penalty=1.3)


@pytest.fixture(scope="module", params=["crossed", "prefixed"])
def generator(request):
    cross = CrossAttentionConfig(every=2, heads=2) if request.param == "crossed" else None
    return Generator(random_decoder(CONFIG, cross_attention=cross))


@pytest.fixture
def engine(generator):
    made = Engine(generator, rows=3, length=64, memory_tokens=5 * generator.crosses, waiting=40)
    yield made
    assert made.drain(60.0)


def drawn(seed: int, generator, most: int = 20) -> Request:
    """A request of some user, or of nobody."""
    rng = np.random.default_rng(seed)
    tokens = jnp.asarray(rng.normal(size=(1, 4, CONFIG.hidden_size)), jnp.float32)
    known = None if seed % 4 == 0 else Memory(tokens, jnp.array([[True, seed % 3 > 0, True, True]]))
    if known and not generator.crosses:
        known = known._replace(mask=jnp.ones((1, 4), bool))
    return Request(
        prompt=rng.integers(1, CONFIG.vocab_size, rng.integers(1, 20)).tolist(),
        max_new_tokens=int(rng.integers(1, most)),
        sampling=WARM._replace(seed=seed) if seed % 3 == 1 else Sampling(),
        stop={int(rng.integers(CONFIG.vocab_size))},
        **{"memory" if generator.crosses else "prefix": known},
    )


def alone(request: Request, generator) -> list[int]:
    own = request._asdict() | {"prompts": [request.prompt]}
    del own["prompt"]
    return generator.generate(**own)[0]


@pytest.mark.slow
def test_an_answer_is_the_same_whoever_else_is_in_the_batch(engine, generator):
    requests = [drawn(seed, generator) for seed in range(24)]
    answers = []
    for nth, request in enumerate(requests):
        answers.append(engine.submit(request))
        time.sleep(0.02 * (nth % 3))  # they join at any step
    assert [[*answer] for answer in answers] == [alone(request, generator) for request in requests]


def test_many_who_ask_at_once_are_answered_in_turn(engine, generator):
    found = {}

    def ask(seed):
        found[seed] = [*engine.submit(drawn(seed, generator))]

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {seed: alone(drawn(seed, generator), generator) for seed in range(12)}


def test_who_goes_makes_room(engine, generator):
    endless = drawn(1, generator)._replace(max_new_tokens=40, stop=(), prompt=[1])
    running = [engine.submit(endless) for _ in range(3)]
    heads = [next(iter(answer)) for answer in running]
    waiting = engine.submit(drawn(2, generator))
    for answer in running:
        answer.cancel()
    assert len([*running[0]]) < 39
    assert [*waiting] == alone(drawn(2, generator), generator)
    assert heads == [alone(endless, generator)[0]] * 3


def test_too_many_are_told_so_and_a_drained_engine_ends_what_it_has(generator):
    engine = Engine(generator, rows=1, length=64, memory_tokens=5 * generator.crosses, waiting=2)
    request = drawn(1, generator)._replace(max_new_tokens=30, stop=(), prompt=[1])
    first = engine.submit(request)
    next(iter(first))
    others = [engine.submit(request) for _ in range(2)]
    with pytest.raises(Busy, match="2 requests wait already"):
        engine.submit(request)
    assert engine.drain(60.0)
    assert [[*answer] for answer in others] == [alone(request, generator)] * 2
    assert len([*first]) == 29
    with pytest.raises(Closed):
        engine.submit(request)


def test_a_batch_that_breaks_down_is_told_to_those_in_it_and_to_no_others(
    engine, generator, monkeypatch
):
    request, step = (
        drawn(1, generator)._replace(max_new_tokens=30, stop=(), prompt=[1]),
        generator.step,
    )

    def broken(state, tokens):
        jax.tree.map(lambda x: x.delete(), state.caches)
        raise MemoryError("no room")

    monkeypatch.setattr(generator, "step", broken)
    with pytest.raises(RuntimeError, match="could not be gone on with"):
        list(engine.submit(request))
    monkeypatch.setattr(generator, "step", step)
    assert [*engine.submit(request)] == alone(request, generator)


def test_what_cannot_be_answered_is_refused_at_once(engine, generator):
    request = drawn(0, generator)
    for changes, said in (
        ({"prompt": [64]}, "outside of the vocabulary"),
        ({"prompt": []}, "is empty"),
        ({"max_new_tokens": 0}, "asks for nothing"),
        ({"prompt": [1] * 40, "max_new_tokens": 30}, "take 70 positions of 64"),
        ({"sampling": Sampling(top_p=2.0)}, "top_p=2"),
    ):
        with pytest.raises(ValueError, match=said):
            engine.submit(request._replace(**changes))
