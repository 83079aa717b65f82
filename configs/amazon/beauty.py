"""The encoder alone on Amazon Beauty, in the 5-core sequences that S3-Rec ships: item ids only.

USER_LLM_DATA=... user-llm run configs/amazon/beauty.py --seeds 3 --record

The source is a folder with S3-Rec's `Beauty.txt`.
"""

from user_llm.config import (
    DataConfig,
    EncoderConfig,
    Experiment,
    ObjectiveConfig,
    OptimConfig,
    PretrainConfig,
    encoder_only,
)


def config() -> Experiment:
    return encoder_only(
        name="amazon_beauty_encoder",
        data=DataConfig(
            name="sequences",
            version="Beauty",
            source="s3rec",
            features=("item",),
            protocol="sasrec_file",
        ),
        encoder=EncoderConfig(
            window=50, embed=64, layers=1, heads=1, mlp=256, gated=True, dropout=0.5
        ),
        pretrain=PretrainConfig(
            steps=2000,
            batch_size=64,
            objective=ObjectiveConfig(kind="softmax"),
            optim=OptimConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=50),
            validate_every=200,
            checkpoint_every=200,
        ),
    )
