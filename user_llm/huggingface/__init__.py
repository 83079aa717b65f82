"""Hugging Face's folders of decoders, read and written. Nothing else knows the names in them."""

from user_llm.huggingface.adapters import adapter_config, load_adapter, save_adapter
from user_llm.huggingface.configs import decoder_config
from user_llm.huggingface.weights import check_decoder, import_decoder, load_decoder, save_decoder

__all__ = [
    "adapter_config",
    "check_decoder",
    "decoder_config",
    "import_decoder",
    "load_adapter",
    "load_decoder",
    "save_adapter",
    "save_decoder",
]
