"""The encoders by the name that a config calls them."""

from user_llm.config import EncoderKind
from user_llm.models.encoders.autoregressive import AutoregressiveEncoder
from user_llm.models.encoders.base import Encoder
from user_llm.models.encoders.bert4rec import BERT4RecEncoder
from user_llm.models.encoders.dual import DualEncoder
from user_llm.models.encoders.hstu import HSTUEncoder

ENCODERS: dict[EncoderKind, type[Encoder]] = {
    "autoregressive": AutoregressiveEncoder,
    "hstu": HSTUEncoder,
    "bert4rec": BERT4RecEncoder,
    "dual": DualEncoder,
}
