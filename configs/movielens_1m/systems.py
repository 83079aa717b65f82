"""User-LLM's systems on MovieLens 1M, beside the same decoder with the history in its prompt.

USER_LLM_DATA=... user-llm run configs/language_model/films.py
USER_LLM_DATA=... user-llm sweep configs/movielens_1m/systems.py --record

Every system begins with the same encoder and the same decoder and is fine-tuned on as many
examples, the main ones with three seeds; what has a memory is aligned before. Some are run at a
time with `--only 'latents_*'` and the like.
"""

from pathlib import Path
from typing import Any

from user_llm.cli import load_config
from user_llm.config import (
    CrossAttentionConfig,
    EncoderConfig,
    EncoderKind,
    EvaluationConfig,
    Experiment,
    FigureConfig,
    FinetuneConfig,
    LoRAConfig,
    OptimConfig,
    PerceiverConfig,
    PretrainConfig,
    StageConfig,
    Sweep,
    SystemConfig,
    WarmupConfig,
    encoder_only,
)

RUNS, HISTORY, SEEDS = "runs/systems", 50, 3
CONTROL = ("shuffled_memory",)  # of the main systems
LANGUAGE = load_config(str(Path(__file__).parents[1] / "language_model" / "films.py"))
ENCODER = EncoderConfig(window=200, embed=64, layers=2, heads=1, mlp=256, gated=True, dropout=0.2)
EACH = CrossAttentionConfig(every=1, heads=8, gate=0.5)
CROSS = SystemConfig(
    perceiver=PerceiverConfig(latents=0),  # one memory token per event
    cross_attention=EACH,
)
ITEMS = {"item_tokens": True}  # so few examples teach nobody to spell 3,416 names
LATENTS = PerceiverConfig(latents=16, layers=2, heads=8)
TOLD = SystemConfig(streams=())  # the history in words, if at all
RATE = OptimConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=20)


def encoder(kind: EncoderKind = "autoregressive", gated: bool = True) -> Experiment:
    return encoder_only(
        name="encoder" if kind == ENCODER.kind else f"encoder_{kind}",
        data=LANGUAGE.data,
        encoder=ENCODER.model_copy(update={"kind": kind, "gated": gated}),
        pretrain=PretrainConfig(
            steps=1600,
            batch_size=32,
            optim=OptimConfig(learning_rate=1.5e-3, schedule="cosine", warmup_steps=50),
            validate_every=400,
            checkpoint_every=200,
        ),
    )


def system(
    name: str,
    system: SystemConfig,
    *,
    read: Experiment | None = None,
    align: int = 300,
    steps: int = 200,
    history: int = HISTORY,
) -> Experiment:
    """A system that is fine-tuned from the shared decoder and an encoder that is `read`.

    In `align` steps before, the decoder learns to name what a state points at.
    """
    read = read or encoder()
    return Experiment(
        name=name,
        data=LANGUAGE.data,
        encoder=read.encoder,
        encoder_from=f"{RUNS}/{read.name}/seed-0" if read.pretrain.steps else "",
        pretrain=PretrainConfig(steps=0),
        language_model=LANGUAGE.language_model.model_copy(
            update={"from_run": f"runs/{LANGUAGE.name}"}
        ),
        system=system,
        warmup=WarmupConfig(steps=0),
        align=StageConfig(steps=align, batch_size=64, optim=RATE, checkpoint_every=100),
        finetune=FinetuneConfig(
            steps=steps,
            batch_size=16,
            optim=RATE,
            tasks={"next_item": 0.7, "future_favorite_category": 0.3},
            history=history,
            max_tokens=32,
            checkpoint_every=50,
        ),
        evaluation=EvaluationConfig(users=1000, beam=20, baselines=(), text_tokens=4000),
    )


def reading(name: str, parts: dict[str, Any] | None = None, **how: Any) -> Experiment:
    """A system that reads an encoder by cross-attention, but for the parts that are given."""
    return system(name, CROSS.model_copy(update=parts), **how)


def told(name: str, parts: dict[str, Any] | None = None, **how: Any) -> Experiment:
    """A system without a memory, which is told of the history in words, if at all."""
    return system(name, TOLD.model_copy(update=parts), align=0, **how)


def main() -> list[Experiment]:
    """The chief systems, each controlled by the memory of somebody else."""
    rows = [
        reading("item_tokens", ITEMS),
        reading("perceiver_200", ITEMS | {"perceiver": LATENTS}, history=200),
        reading("cross_attention"),
        told("no_context"),
        told("text_10", {"text_history": 10}),
        told("text_50", {"text_history": 50}),
    ]
    return [controlled(one, seed) for seed in range(SEEDS) for one in rows]


def controlled(one: Experiment, seed: int = 0) -> Experiment:
    judged = one.evaluation.model_copy(update={"baselines": CONTROL})
    return one.model_copy(update={"evaluation": judged, "seed": seed})


def longer() -> list[Experiment]:
    """What is cheap, towards the time that `text_50` takes."""
    return [
        reading("cross_attention_longer", align=1000, steps=2000),
        told("text_10_longer", {"text_history": 10}, steps=1000),
        reading("item_tokens_longer", ITEMS, steps=2000),
        reading("item_tokens_unaligned", ITEMS, align=0),
    ]


def words() -> list[Experiment]:
    return [
        told("text_summary", {"text_summary": True}),
        told("text_200", {"text_history": 200}, history=200),
        # Beside `item_tokens_unaligned`: aligned with its text it would take an hour and more.
        reading("item_tokens_text_10", ITEMS | {"text_history": 10}, align=0),
        reading("text_10_item_tokens", ITEMS | {"text_history": 10, "fusion": "none"}),
    ]


def latents() -> list[Experiment]:
    sizes = {n: LATENTS.model_copy(update={"latents": n}) for n in (1, 4, 16, 64)}
    return [
        *(reading(f"latents_{n}", ITEMS | {"perceiver": own}) for n, own in sizes.items()),
        reading("soft_prompt", ITEMS | {"fusion": "soft_prompt", "perceiver": LATENTS}),
    ]


def histories() -> list[Experiment]:
    return [
        *(reading(f"history_{n}", ITEMS, history=n) for n in (25, 100)),
        controlled(reading("history_200", ITEMS, history=200)),
    ]


def encoders() -> list[Experiment]:
    """Beside `item_tokens_unaligned`, for the states of these point at no item's vector."""
    untrained = encoder().model_copy(update={"pretrain": PretrainConfig(steps=0)})
    others = [encoder("dual"), encoder("bert4rec", gated=False)]
    return [
        *others,
        *(reading(f"read_{one.encoder.kind}", ITEMS, read=one, align=0) for one in others),
        reading("read_untrained", ITEMS, read=untrained),
    ]


def strategies() -> list[Experiment]:
    once, grouped = (EACH.model_copy(update=x) for x in ({"every": 5}, {"kv_heads": 2}))
    return [
        reading("train_encoder", ITEMS | {"strategy": "encoder"}),
        reading("train_lora", ITEMS | {"strategy": "lora", "lora": LoRAConfig(rank=8)}),
        reading("train_projection", ITEMS | {"strategy": "projection"}),
        reading("train_all_but_encoder", ITEMS | {"encoder_frozen": True}),
        reading("cross_attention_once", ITEMS | {"cross_attention": once}),
        reading("cross_attention_grouped", ITEMS | {"cross_attention": grouped}),
    ]


FIGURES = (
    FigureConfig(
        title="Longer histories",
        against="finetune.history",
        lines={"memory": "item_tokens history_*"},
        label="events",
    ),
    FigureConfig(
        title="Fewer tokens of memory",
        against="system.perceiver.latents",
        lines={"cross-attention": "latents_*", "soft prompt": "soft_prompt"},
        label="latents",
        scale="log",
    ),
    FigureConfig(
        title="What an answer costs",
        against="cost/gflop",
        lines={
            "memory": "item_tokens history_200 latents_* perceiver_200",
            "memory, names spelled": "cross_attention",
            "text": "text_10 text_50 text_200",
            "text, items as tokens": "text_10_item_tokens",
            "summary": "text_summary",
            "memory and text": "item_tokens_text_10",
            "neither": "no_context",
        },
        label="GFLOP to the first token",
        scale="log",
    ),
    FigureConfig(
        title="What is trained, and what is left of the language",
        against="test/text/perplexity",
        lines={
            "all": "item_tokens",
            "all, names spelled": "cross_attention",
            "all but the encoder": "train_all_but_encoder",
            "all but the decoder": "train_encoder",
            "adapters": "train_lora",
            "the projection": "train_projection",
            "all, history in words": "text_10 text_50",
        },
        label="perplexity of plain texts afterwards",
        scale="log",
    ),
)


def sweep() -> Sweep:
    groups = (main(), longer(), words(), latents(), histories(), encoders(), strategies())
    experiments = (encoder(), *(one for group in groups for one in group))
    return Sweep(experiments=experiments, figures=FIGURES)
