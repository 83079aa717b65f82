"""What only a person knows of the systems here; `user-llm zoo table` makes the index of it.

Rows of a sweep that vary a system stand in its folder's table alone.
"""

from user_llm.zoo.entries import Entry, Family, Paper, Zoo

USER_LLM = Paper(title="User-LLM", arxiv="2402.13598")
LIGR = Paper(title="LiGR", arxiv="2502.03417")
HSTU = Paper(title="HSTU", arxiv="2402.17152")
BERT4REC = Paper(title="BERT4Rec", arxiv="1904.06690")
PERCEIVER = Paper(title="Perceiver", arxiv="2103.03206")
SEQLLM = Paper(title="SeqLLM", arxiv="2608.03063")
PPLUG = Paper(title="Persona-Plug", arxiv="2409.11901")
LAMP = Paper(title="LaMP", arxiv="2304.11406")
DPL = Paper(title="DPL", arxiv="2503.02450")
DEP = Paper(title="DEP", arxiv="2507.20849")
LLAMA3 = Paper(title="Llama 3", arxiv="2407.21783")
GEMMA3 = Paper(title="Gemma 3", arxiv="2503.19786")

NEXT = ("test/next_item/recall_at_10", "test/next_item/ndcg_at_10")
STARS = tuple(f"test/rating_prediction/{name}" for name in ("mae", "expected_rmse"))
TOLD = ("test/rating_among_peers/expected_rmse",)


def zoo() -> Zoo:
    return Zoo(
        families=(
            quickstart(),
            encoders(),
            readers(),
            personas(),
            apart(),
            streams(),
            words(),
            pods(),
        )
    )


def quickstart() -> Family:
    return Family(
        title="Quickstart",
        about="The whole path on the embedded world, in minutes; nothing is downloaded.",
        papers=(USER_LLM,),
        metrics=("test/next_item/recall_at_10", "test/favorite_category/accuracy"),
        systems=(
            Entry(
                config="quickstart.py",
                what="a decoder that reads a Perceiver's 8 latents by cross-attention",
                papers=(PERCEIVER,),
            ),
        ),
    )


def encoders() -> Family:
    return Family(
        title="User encoders",
        about="What they learn from is what users do next; alone they rank the whole catalogue.",
        papers=(USER_LLM,),
        metrics=NEXT,
        systems=(
            Entry(
                config="movielens_1m/encoder.py",
                what="causal Transformer over item ids",
                papers=(LIGR,),
            ),
            Entry(
                config="movielens_1m/encoder_features.py",
                what="the same, told ratings and genres",
                papers=(LIGR,),
            ),
            Entry(
                config="movielens_1m/hstu.py",
                what="HSTU with true times",
                papers=(HSTU,),
            ),
            Entry(
                config="movielens_1m/systems.py",
                row="encoder",
                what="causal Transformer that User-LLM's systems share",
                papers=(LIGR,),
            ),
            Entry(
                config="movielens_1m/systems.py",
                row="encoder_bert4rec",
                what="BERT4Rec in its place",
                papers=(BERT4REC,),
            ),
            Entry(
                config="movielens_1m/systems.py",
                row="encoder_dual",
                what="two towers in its place",
            ),
            Entry(
                config="movielens_1m/cold.py",
                what="films by their genres and year: for users and films never seen",
                metrics=(*NEXT, "test/cold_users/recall_at_10", "test/new_items/recall_at_10"),
            ),
            Entry(
                config="movielens_1m/grow.py",
                what="trained on when users and films have joined",
                metrics=(*NEXT, "test/old_users/recall_at_10", "test/old_users/ndcg_at_10"),
            ),
            Entry(
                config="amazon_reviews/beauty.py",
                what="causal Transformer over item ids",
                papers=(LIGR,),
            ),
            Entry(
                config="amazon_reviews/sports.py",
                what="causal Transformer over item ids",
                papers=(LIGR,),
            ),
        ),
    )


def readers() -> Family:
    films = (*NEXT, "test/future_favorite_category/accuracy", "cost/gflop", "test/text/perplexity")
    return Family(
        title="User-LLM",
        about="A decoder reads what an encoder knows of a user; beside it the same decoder with "
        "the history in words.",
        papers=(USER_LLM,),
        metrics=films,
        systems=(
            Entry(
                config="movielens_1m/systems.py",
                row="item_tokens",
                what="reads 50 events by cross-attention, items as tokens",
                papers=(SEQLLM,),
            ),
            Entry(
                config="movielens_1m/systems.py",
                row="perceiver_200",
                what="reads 200 events through 16 latents of a Perceiver",
                papers=(SEQLLM, PERCEIVER),
            ),
            Entry(
                config="movielens_1m/systems.py",
                row="soft_prompt",
                what="reads 16 latents as a soft prompt",
                papers=(SEQLLM, PERCEIVER),
            ),
            Entry(
                config="movielens_1m/systems.py",
                row="train_encoder",
                what="the decoder frozen, all else trained",
                papers=(SEQLLM,),
            ),
            Entry(
                config="movielens_1m/systems.py",
                row="cross_attention",
                what="reads 50 events, names spelled",
            ),
            Entry(
                config="movielens_1m/systems.py",
                row="text_50",
                what="no memory: is told 50 events in words",
            ),
            Entry(
                config="movielens_1m/cross_attention.py",
                what="pre-trained weights read an encoder, names spelled",
                metrics=NEXT,
                remark="It was recorded with an earlier, smaller encoder, whose own recall@10 was "
                "0.289; the parameters are those of the config as it is.",
            ),
            Entry(
                config="amazon_reviews/reviews.py",
                row="timelines_cross_attention",
                what="reads reviews of 24 categories",
                metrics=(
                    "test/next_item/recall_at_10",
                    "test/favorite_category/accuracy",
                    "test/rating_prediction/rmse",
                    "test/review_generation/rouge_l",
                ),
            ),
            Entry(
                config="amazon_reviews/reviews.py",
                row="instruments_cross_attention",
                what="reads reviews of musical instruments",
                metrics=("test/rating_prediction/rmse", "test/review_generation/rouge_l"),
            ),
        ),
    )


def personas() -> Family:
    stars = ("test/LaMP_3/mae", "test/LaMP_3/rmse")
    genres = ("test/LaMP_2/accuracy", "test/LaMP_2/macro_f1")
    asked = {"ratings": (stars, "stars of a review"), "tags": (genres, "a film's genre")}
    return Family(
        title="Persona-Plug",
        about="A user's past texts become a token before a frozen decoder, weighed by the present "
        "one.",
        papers=(PPLUG, LAMP),
        systems=tuple(
            Entry(
                config="lamp/personas.py",
                row=f"{name}_{row}",
                what=f"{what}: {about}",
                metrics=metrics,
            )
            for name, (metrics, about) in asked.items()
            for row, what in {
                "pplug": "with labels, weights by temperature",
                "pplug_paper": "as published",
            }.items()
        ),
    )


def apart() -> Family:
    real = {"films": "films", "instruments": "instruments", "timelines": "24 categories"}
    return Family(
        title="Differences from peers",
        about="What sets a user apart from others at the same items, beside the timeline.",
        papers=(DPL, DEP),
        metrics=(*STARS, *TOLD),
        systems=(
            Entry(
                config="world/differences.py",
                row="difference",
                what="timeline and differences, where they carry the signal",
                metrics=("test/rating_among_peers/mae", "test/rating_among_peers/rmse"),
            ),
            *(
                Entry(
                    config="differences/real.py",
                    row=f"{name}_stars_{row}",
                    what=f"{what}: stars of {about}",
                )
                for name, about in real.items()
                for row, what in {
                    "difference": "timeline and differences",
                    "dep": "DEP's differences between words",
                }.items()
            ),
        ),
    )


def streams() -> Family:
    return Family(
        title="Streams of one's own",
        about="What else is known of a user, in one file with its config.",
        papers=(USER_LLM,),
        metrics=(
            "test/favorite_category/accuracy",
            "test/future_favorite_category/accuracy",
        ),
        systems=(
            Entry(
                config="streams/tastes.py",
                what="shares of genres over spans of time, as tokens",
            ),
        ),
    )


def words() -> Family:
    return Family(
        title="Language models",
        about="What the systems on films and reviews begin with.",
        metrics=("test/text/perplexity", "test/text/bits_per_byte"),
        systems=(
            Entry(
                config="language_model/films.py",
                what="a small Llama that knows the words of films and of reviews",
            ),
        ),
    )


def pods() -> Family:
    return Family(
        title="For pods",
        about="User-LLM at sizes for pods of TPUs, [compiled for them]"
        "(../launch/README.md#checking-a-pod-job-before-it-runs) and never run: figures are the "
        "compiler's estimates.",
        papers=(USER_LLM,),
        metrics=("mfu", "hbm_gib/total", "tokens_per_second"),
        systems=(
            Entry(
                config="pods/gemma3_1b.py",
                what="Gemma 3 1B that reads a timeline, trained whole",
                papers=(GEMMA3,),
                recorded="finetune/v5e:4x4",
            ),
            Entry(
                config="pods/llama3_8b.py",
                what="Llama 3 8B that reads a timeline, trained whole",
                papers=(LLAMA3,),
                recorded="finetune/v5p:8x8x16",
            ),
        ),
    )
