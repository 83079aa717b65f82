"""A decoder of 5.1 M parameters learns the words of films and of what people write of things.

USER_LLM_DATA=... user-llm run configs/language_model/films.py --record

Read are the titles, genres and plots of MovieLens 1M, questions about films with their answers, and
the reviews of two Amazon data sets; judged are texts that were held out.
"""

from user_llm.config import (
    DataConfig,
    DecoderConfig,
    EvaluationConfig,
    Experiment,
    FinetuneConfig,
    LanguageModelConfig,
    OptimConfig,
    PretrainConfig,
    SystemConfig,
    WarmupConfig,
)

DATA = DataConfig(
    name="movielens",
    version="1m",
    source="ml-1m",
    features=("item", "rating"),
    protocol="sasrec_file",
    held_out_users=0.1,  # who are asked about what is to come
)


def config() -> Experiment:
    return Experiment(
        name="language_model_films",
        data=DATA,
        system=SystemConfig(streams=()),
        language_model=LanguageModelConfig(
            architecture=DecoderConfig(
                vocab_size=4096,
                hidden_size=256,
                intermediate_size=704,
                num_hidden_layers=5,
                num_attention_heads=8,
                num_key_value_heads=8,
                head_dim=32,
                max_position_embeddings=4096,
            ),
            corpora=(
                DataConfig(
                    name="amazon_reviews", version="2014", source="amazon-musical-instruments"
                ),
                DataConfig(
                    name="amazon_reviews", version="2023_timelines", source="amazon-2023-timelines"
                ),
            ),
            reviews=100_000,
            held_out=0.02,
        ),
        pretrain=PretrainConfig(steps=0),
        warmup=WarmupConfig(
            steps=1200,
            batch_size=16,
            tokens=256,
            practice=6,  # a quarter of what is read: who is asked for a film knows its name
            optim=OptimConfig(learning_rate=2e-3, schedule="cosine", warmup_steps=50),
            validate_every=100,
            checkpoint_every=100,
        ),
        finetune=FinetuneConfig(
            steps=0,
            tasks={"next_item": 1.0, "future_favorite_category": 1.0, "rating_prediction": 1.0},
        ),
        evaluation=EvaluationConfig(users=2000, baselines=()),
    )
