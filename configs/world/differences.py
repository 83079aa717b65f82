"""What differences from peers buy where they carry the signal, and their controls.

user-llm sweep configs/world/differences.py --record

The critics of the embedded world watch what everyone watches, and are lenient or strict; their
stars tell that of a film's quality no less. Asked is how many stars they will give the next film,
told what others gave it and a few of the critic's own events. Beside the timeline alone stand
differences of these events' vectors from those of peers at the same films, and as controls the same
tokens of differences from strangers, and of no differences.

The encoder learns what comes next, not the stars: of films that it has seen often enough ids tell
the quality by heart, as well as any peer does.
"""

from user_llm import quickstart
from user_llm.config import (
    DataConfig,
    DifferenceConfig,
    EvaluationConfig,
    FigureConfig,
    FinetuneConfig,
    LanguageModelConfig,
    ObjectiveConfig,
    OptimConfig,
    PeerConfig,
    PerceiverConfig,
    PretrainConfig,
    StageConfig,
    Sweep,
    WarmupConfig,
    encoder_only,
)

RUNS, SEEDS = "runs/differences", 3
EVENTS = {"": 5, "_2": 2, "_20": 20}  # that are read, by how a row's name ends
LATENTS = PerceiverConfig(latents=4, layers=1, heads=4)
ROWS = {
    "timeline": None,
    "difference": PeerConfig(),
    "shuffled": PeerConfig(chosen="shuffled"),
    "zeroed": PeerConfig(chosen="none"),
}


def sweep() -> Sweep:
    base = quickstart.config()
    data = DataConfig(name="world", version="critics", users=2000)
    unrated = base.pretrain.model_copy(update={"objective": ObjectiveConfig(weights={"rating": 0})})
    reader = encoder_only(name="encoder", data=data, encoder=base.encoder, pretrain=unrated)
    none = {"align": StageConfig(steps=0), "pretrain": PretrainConfig(steps=0)}
    finetune = FinetuneConfig(
        steps=600,
        batch_size=48,
        optim=OptimConfig(schedule="cosine", warmup_steps=60),
        tasks={"rating_among_peers": 1.0},
        max_tokens=24,
        validate_every=200,
    )
    words = base.model_copy(
        update={"name": "words", "data": data, "finetune": finetune.model_copy(update={"steps": 0})}
        | {"system": base.system.model_copy(update={"streams": ()})}
        | none
    )
    experiments = [reader, words]
    for row, peers in ROWS.items():
        for ending, events in EVENTS.items():
            compared = DifferenceConfig(
                peers=peers or PeerConfig(), perceiver=LATENTS, events=events
            )
            streams = ("timeline", "difference") if peers else ("timeline",)
            one = base.model_copy(
                update={
                    "name": f"{row}{ending}",
                    "data": data,
                    "encoder_from": f"{RUNS}/encoder/seed-0",
                    "language_model": LanguageModelConfig(from_run=f"{RUNS}/words/seed-0"),
                    "system": base.system.model_copy(
                        update={"streams": streams, "difference": compared}
                    ),
                    "warmup": WarmupConfig(steps=0),
                    "finetune": finetune.model_copy(update={"history": events}),
                    "evaluation": EvaluationConfig(users=1000, baselines=("shuffled_memory",)),
                }
                | none
            )
            experiments += [one.model_copy(update={"seed": seed}) for seed in range(SEEDS)]
    figure = FigureConfig(
        title="What sets a critic apart from their peers",
        against="finetune.history",
        lines={row: " ".join(f"{row}{ending}" for ending in EVENTS) for row in ROWS},
        metric="test/rating_among_peers/mae",
        label="events",
        scale="log",
    )
    return Sweep(experiments=tuple(experiments), figures=(figure,))
