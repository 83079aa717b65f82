"""Hugging Face's folders of decoders, read and written. Nothing else knows the names in them."""

from user_llm.huggingface.configs import decoder_config
from user_llm.huggingface.weights import load_decoder, save_decoder

__all__ = ["decoder_config", "load_decoder", "save_decoder"]
