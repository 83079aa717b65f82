"""The encoder alone on Amazon Sports and Outdoors, as in `beauty.py`: item ids only.

USER_LLM_DATA=... user-llm run configs/amazon_reviews/sports.py --seeds 3 --record

1 CPU core beside other work, 59 to 80 minutes a seed. Test, mean of 3 seeds: recall_at_10 0.0554
±0.0008, ndcg_at_10 0.0319 ±0.0003. Of what eSASRec (arXiv 2508.06450) publishes, the best recall is
0.0569, of one model, and the best NDCG 0.0323, of another whose recall is 0.0560: missed by 2.7 and
1.2 %. Neither 7,000 steps nor (in their first 2,000) 2,048 sampled negatives help.
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
