"""The encoder alone on Amazon Sports and Outdoors, as in `beauty.py`: item ids only.

USER_LLM_DATA=... user-llm run configs/amazon/sports.py --seeds 3 --record

1 CPU core beside other work, about an hour a seed. Test of two seeds, the third is not trained:
recall_at_10 0.0549 and 0.0549, ndcg_at_10 0.0318 and 0.0317. The best published by eSASRec (arXiv
2508.06450), 0.0569 and 0.0323, is missed by 3.5 and 1.7 %; validation still rises at the end.
"""

from pathlib import Path

from user_llm.cli import load_config
from user_llm.config import Experiment


def config() -> Experiment:
    beauty = load_config(str(Path(__file__).with_name("beauty.py")))
    data = beauty.data.model_copy(update={"version": "Sports_and_Outdoors"})
    # As many epochs as Beauty's; there are 1.7 times as many events.
    longer = {"steps": 6000, "validate_every": 1000, "checkpoint_every": 1000}
    pretrain = beauty.pretrain.model_copy(update=longer)
    changes = {"name": "amazon_sports_encoder", "data": data, "pretrain": pretrain}
    return beauty.model_copy(update=changes)
