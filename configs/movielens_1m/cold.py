r"""Users and films that training never sees: a fifth of the users, a tenth of the films.

USER_LLM_DATA=... user-llm run configs/movielens_1m/cold.py --record
USER_LLM_DATA=... user-llm run configs/movielens_1m/cold.py --record \
    --data.features item --encoder.content --encoder.id-dropout 0 --pretrain.steps 600 \
    --name movielens_1m_cold_ids_alone

A film's vector is the sum of its id's and of its content's, its genres and its year; an id is
hidden now and then, so that content alone comes to say where a film belongs. Without content, what
was never seen is never recommended, however long the training.

1 CPU core beside other work, 45 minutes with halts. Test, recall_at_10: 0.304 for users of the
training, 0.316 for those held out; 0.044 where a film is asked for that no training had, 15 times
what chance gives. Of ids alone, after 7 minutes: 0.267, 0.278 and 0.
"""

from pathlib import Path

from user_llm.cli import load_config
from user_llm.config import Experiment


def config() -> Experiment:
    ids = load_config(str(Path(__file__).with_name("encoder.py")))
    held_out = {"held_out_users": 0.2, "held_out_items": 0.1}
    data = {"features": ("item", "genres", "year")} | held_out
    content = {"content": ("genres", "year"), "id_dropout": 0.2}
    return ids.model_copy(
        update={
            "name": "movielens_1m_cold",
            "data": ids.data.model_copy(update=data),
            "encoder": ids.encoder.model_copy(update=content),
            "pretrain": ids.pretrain.model_copy(update={"steps": 2400}),
        }
    )
