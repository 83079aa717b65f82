"""The peer of the decoder's benchmark: transformers on PyTorch.

A plain loop over the model's forward with its cache, which is leaner than its `generate`.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from user_llm.evaluation.peers.decoding import Decoding, asked, measure
from user_llm.evaluation.peers.work import memory


def main() -> None:
    baseline, work = memory(), asked()
    torch.set_num_threads(work.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load(work, device)

    def answer(prompts: np.ndarray, tokens: int) -> Iterator[list[int]]:
        given, cache = torch.from_numpy(prompts).to(device), None
        with torch.inference_mode():
            for _ in range(tokens):
                out = model(given, past_key_values=cache, use_cache=True, logits_to_keep=1)
                given, cache = out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values
                yield given[:, 0].tolist()

    def peak() -> int:
        return torch.cuda.max_memory_allocated() if device == "cuda" else memory(True) - baseline

    measure(answer, work, peak)


def load(work: Decoding, device: str):
    dtype = getattr(torch, work.dtype)
    model: Any = AutoModelForCausalLM.from_pretrained(work.folder, dtype=dtype)
    return model.eval().to(device)


if __name__ == "__main__":
    main()
