"""The encoder alone on MovieLens 1M: item ids, leave-one-out over the whole catalogue.

USER_LLM_DATA=... user-llm run configs/movielens_1m/encoder.py --seeds 3 --record

1 CPU core beside other work, 57, 71 and 78 minutes a seed, two of them halted for measurements.
Test, mean of 3 seeds: recall_at_10 0.324 ±0.002, ndcg_at_10 0.189 ±0.002. SASRec+ (arXiv
2309.07602) is published with 0.315 and 0.182.
"""

from user_llm.config import (
    DataConfig,
    EncoderConfig,
    Experiment,
    OptimConfig,
    PretrainConfig,
    encoder_only,
)


def config() -> Experiment:
    return encoder_only(
        name="movielens_1m_encoder",
        # The events, items and order of the SASRec project's file.
        data=DataConfig(
            name="movielens",
            version="1m",
            source="ml-1m",
            features=("item",),
            protocol="sasrec_file",
        ),
        encoder=EncoderConfig(
            window=200, embed=64, layers=2, heads=1, mlp=256, gated=True, dropout=0.2
        ),
        pretrain=PretrainConfig(
            steps=4800,
            batch_size=32,
            optim=OptimConfig(learning_rate=1.5e-3, schedule="cosine", warmup_steps=50),
            validate_every=400,
            checkpoint_every=400,
        ),
    )
