"""Hugging Face's folders, read and written. Nothing else knows the names in them."""

from user_llm.huggingface.adapters import adapter_config, load_adapter, save_adapter
from user_llm.huggingface.configs import decoder_config
from user_llm.huggingface.text_encoders import import_text_encoder, text_encoder_config
from user_llm.huggingface.weights import check_decoder, import_decoder, load_decoder, save_decoder

__all__ = [
    "adapter_config",
    "check_decoder",
    "decoder_config",
    "import_decoder",
    "import_text_encoder",
    "load_adapter",
    "load_decoder",
    "save_adapter",
    "save_decoder",
    "text_encoder_config",
]
