"""What differences from peers buy where they carry the signal, and their controls.

user-llm sweep configs/world/differences.py --record

The critics of the embedded world watch what everyone watches; their taste shows in how their stars
differ from those that others gave the same film before. Asked is how many stars they will give the
next film, told what others gave it. Beside the timeline alone stand differences of the encoder's
vectors, and as controls the same tokens of differences from strangers, and of no differences.
"""

from user_llm import quickstart
from user_llm.config import (
    DataConfig,
    DifferenceConfig,
    EvaluationConfig,
    LanguageModelConfig,
    PeerConfig,
    PerceiverConfig,
    PretrainConfig,
    StageConfig,
    Sweep,
    WarmupConfig,
    encoder_only,
)

RUNS, SEEDS = "runs/differences", 3
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
    reader = encoder_only(name="encoder", data=data, encoder=base.encoder, pretrain=base.pretrain)
    finetune = base.finetune.model_copy(
        update={"tasks": {"rating_among_peers": 1.0}, "max_tokens": 24, "validate_every": 100}
    )
    judged = EvaluationConfig(users=1000, baselines=("shuffled_memory",))
    none = {"align": StageConfig(steps=0), "pretrain": PretrainConfig(steps=0)}
    words = base.model_copy(
        update={"name": "words", "data": data, "finetune": finetune.model_copy(update={"steps": 0})}
        | {"system": base.system.model_copy(update={"streams": ()})}
        | none
    )
    experiments = [reader, words]
    lent = LanguageModelConfig(from_run=f"{RUNS}/words/seed-0")
    for seed in range(SEEDS):
        for row, peers in ROWS.items():
            streams = ("timeline", "difference") if peers else ("timeline",)
            compared = DifferenceConfig(peers=peers or PeerConfig(), perceiver=LATENTS)
            system = base.system.model_copy(update={"streams": streams, "difference": compared})
            experiments.append(
                base.model_copy(
                    update={
                        "name": row,
                        "seed": seed,
                        "data": data,
                        "encoder_from": f"{RUNS}/encoder/seed-0",
                        "language_model": lent,
                        "system": system,
                        "warmup": WarmupConfig(steps=0),
                        "finetune": finetune,
                        "evaluation": judged,
                    }
                    | none
                )
            )
    return Sweep(experiments=tuple(experiments))
