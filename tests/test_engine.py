"""The engine: whoever else is in the batch, an answer is what it would be alone."""

import queue
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_decoders import random_decoder
from test_generate import CONFIG

from user_llm.config import CrossAttentionConfig
from user_llm.inference.catalog import Catalog
from user_llm.inference.generate import Generator
from user_llm.inference.sampling import Sampling
from user_llm.models.layers import Memory
from user_llm.serving.batch import Batch, Request
from user_llm.serving.engine import Busy, Closed, Engine, Load

END = 2
ITEMS = [[3, END], [3, 4, END], [4, 4, 4, 5, END], *([7, i, i % 3 + 3, END] for i in range(8, 60))]
WARM = Sampling(temperature=1.0, top_p=0.9, seed=3, repetition_penalty=1.3)


@pytest.fixture(scope="module", params=["crossed", "prefixed"])
def generator(request):
    cross = CrossAttentionConfig(every=2, heads=2) if request.param == "crossed" else None
    return Generator(random_decoder(CONFIG, cross_attention=cross))


@pytest.fixture
def engine(generator):
    catalog = Catalog(ITEMS, CONFIG.vocab_size)
    size = {"rows": 4, "length": 64, "memory_tokens": 5 * generator.crosses}
    made = Engine(generator, **size, waiting=40, catalog=catalog)
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
    del own["prompt"], own["items_only"]
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
    running = [engine.submit(endless) for _ in range(4)]
    heads = [next(iter(answer)) for answer in running]
    waiting = engine.submit(drawn(2, generator))
    for answer in running:
        answer.cancel()
    assert len([*running[0]]) < 39
    assert [*waiting] == alone(drawn(2, generator), generator)
    assert heads == [alone(endless, generator)[0]] * 4


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


def walk(request: Request, generator) -> list[int]:
    """The best item as it is found one token at a time, whatever comes later."""
    text, item, known = list(request.prompt), [], (request.memory, request.prefix)
    while item not in ITEMS:
        logits = np.asarray(generator.start([text + item], *known)[0][0])
        following = {x[len(item)] for x in ITEMS if x[: len(item)] == item}
        item.append(max(following, key=lambda token: logits[token]))
    return item[:-1]


def held(seed: int, generator) -> Request:
    return drawn(seed, generator)._replace(items_only=True, max_new_tokens=5, stop={END})


def test_answers_are_items_beside_others_that_are_not(engine, generator):
    greedy = [held(seed, generator)._replace(sampling=Sampling()) for seed in range(6)]
    free = [drawn(seed, generator) for seed in range(6)]
    both = [engine.submit(one) for pair in zip(greedy, free, strict=True) for one in pair]
    found = [[*answer] for answer in both]
    assert found[::2] == [walk(request, generator) for request in greedy]
    assert found[1::2] == [alone(request, generator) for request in free]


def test_drawn_answers_are_items(engine, generator):
    hot = Sampling(temperature=3.0, top_p=0.9, repetition_penalty=1.3)
    requests = [held(1, generator)._replace(sampling=hot._replace(seed=seed)) for seed in range(30)]
    found = [[*answer] for answer in [engine.submit(request) for request in requests]]
    assert all([*item, END] in ITEMS for item in found)
    assert len({tuple(item) for item in found}) > 5
    assert found[:3] == [[*engine.submit(request)] for request in requests[:3]]


def test_a_request_for_an_item_that_could_be_none_is_refused(engine, generator):
    request = held(1, generator)
    for changes, said in (
        ({"max_new_tokens": 4}, "ask for at least 5"),
        ({"stop": {3}}, "stop lacks token 2"),
        ({"stop": {END, 3, 4, 60}}, r"stop has tokens \[3, 4\]"),
    ):
        with pytest.raises(ValueError, match=said):
            engine.submit(request._replace(**changes))
    with pytest.raises(ValueError, match="no catalogue"):
        Batch(generator, rows=1, length=64, memory_tokens=5).check(request)
    for items, size, said in (
        ([[3, END], [3]], CONFIG.vocab_size, "end with one token"),
        (ITEMS, CONFIG.vocab_size + 1, "of 65 tokens, the decoder of 64"),
    ):
        with pytest.raises(ValueError, match=said):
            Engine(generator, rows=1, length=64, catalog=Catalog(items, size))


def test_tokens_are_told_from_the_engines_thread(engine, generator):
    request, told = drawn(1, generator)._replace(max_new_tokens=9, stop=()), queue.SimpleQueue()
    engine.submit(request, lambda x: told.put((x, threading.current_thread().name)))
    found = [told.get(timeout=60) for _ in range(10)]
    assert {name for _, name in found} == {"engine"}
    assert [x for x, _ in found] == [*alone(request, generator), None]


def test_who_cannot_be_told_is_let_go_alone(engine, generator, caplog):
    request, told = drawn(1, generator)._replace(max_new_tokens=40, stop=(), prompt=[1]), []

    def tell(x):
        told.append(x)
        if len(told) == 3:
            raise ConnectionError("gone")

    other, broken = engine.submit(request), engine.submit(request, tell)
    assert [*other] == alone(request, generator)
    assert len(told) == 3
    assert broken.ended and "could not be told" in caplog.text


def test_an_engine_counts_what_it_does(engine, generator):
    request = drawn(1, generator)._replace(max_new_tokens=30, stop=(), prompt=[1])
    answers = [engine.submit(request) for _ in range(6)]
    next(iter(answers[0]))
    load = engine.load
    assert 0 < load.running <= 4 and load.waiting <= 6 - load.running and load.tokens > 0
    for answer in answers:
        list(answer)
    assert engine.load._replace(steps=0) == Load(running=0, waiting=0, tokens=180, steps=0)
    assert 58 <= engine.load.steps <= 180


def test_what_cannot_be_answered_is_refused_at_once(engine, generator):
    request = drawn(0, generator)
    for changes, said in (
        ({"prompt": [64]}, "outside of the vocabulary"),
        ({"prompt": []}, "is empty"),
        ({"max_new_tokens": 0}, "asks for nothing"),
        ({"prompt": [1] * 40, "max_new_tokens": 30}, "take 70 positions of 64"),
        ({"sampling": Sampling(top_p=2.0)}, "top_p=2"),
        ({"prefix": Memory(jnp.ones((1, 1, 5)), jnp.ones((1, 1), bool))}, "vectors of 5"),
    ):
        with pytest.raises(ValueError, match=said):
            engine.submit(request._replace(**changes))


@pytest.mark.parametrize("lanes", [(), (4, 2)])
def test_a_memory_is_read_as_what_is_kept_of_it(lanes):
    cross = CrossAttentionConfig(every=2, heads=2)
    generator = Generator(random_decoder(CONFIG, cross_attention=cross, lanes=lanes))
    asked = [drawn(seed, generator)._replace(stop=(), max_new_tokens=12) for seed in (1, 2, 3)]
    engine = Engine(generator, rows=4, length=64, memory_tokens=7, likely=asked[:1])
    kept = [request._replace(memory=engine.crossed(request.memory)) for request in asked]
    assert {request.memory.mask.shape for request in kept} == {(1, 7)}
    answers = [engine.submit(request) for request in asked + kept]
    assert [[*answer] for answer in answers] == 2 * [alone(request, generator) for request in asked]
    smaller = asked[0]._replace(memory=generator.crossed(asked[0].memory))
    with pytest.raises(ValueError, match="4 tokens of a memory are not those of 7"):
        engine.submit(smaller)
    with pytest.raises(ValueError, match="memory of 8 tokens is read up to 7"):
        engine.crossed(jax.tree.map(lambda x: jnp.concatenate([x, x], 1), asked[0].memory))
    assert engine.drain(60.0)
