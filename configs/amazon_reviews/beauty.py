"""The encoder alone on Amazon Beauty, in the 5-core sequences that S3-Rec ships: item ids only.

USER_LLM_DATA=... user-llm run configs/amazon_reviews/beauty.py --seeds 3 --record

The source is a folder with S3-Rec's `Beauty.txt`.

1 CPU core beside other work, 25 to 39 minutes a seed. Test, mean of 3 seeds: recall_at_10 0.0930
±0.0004, ndcg_at_10 0.0562 ±0.0006; the best published by eSASRec (arXiv 2508.06450) are 0.0928 and
0.0531. With a width of 64 instead of 128, seed 0 had 0.0918 and 0.0549.
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
        name="amazon_beauty_encoder",
        data=DataConfig(
            name="sequences",
            version="Beauty",
            source="s3rec",
            features=("item",),
            protocol="sasrec_file",
        ),
        encoder=EncoderConfig(
            window=50, embed=128, layers=1, heads=1, mlp=256, gated=True, dropout=0.5
        ),
        # A running mean of a constant rate's steps serves every length of training, so that Sports,
        # which has more to learn, needs no rate of its own.
        pretrain=PretrainConfig(
            steps=3500,
            batch_size=24,
            optim=OptimConfig(learning_rate=1e-3, average=0.998),
            validate_every=500,
            checkpoint_every=500,
        ),
    )
