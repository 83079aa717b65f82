"""The peer of the inference benchmark: transformers on PyTorch, given the history as text.

A plain loop over the model's forward, which is leaner than its `generate`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from user_llm.evaluation.peers.answering import DECODER, Start, asked, measure, read


class Roomy(DynamicLayer):
    """Keys and values with room for more, so that a token joins them without a copy of all.

    Its like in transformers, `StaticLayer`, cannot go back to a prefix.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, room: int):
        super().__init__()
        self.lazy_initialization(keys, values)
        self.slots = [x.new_empty((*x.shape[:2], room, x.shape[3])) for x in (keys, values)]
        self.update(keys, values)

    def update(self, key_states, value_states, *args, **kwargs):
        first = self.get_seq_length()
        for slots, new in zip(self.slots, (key_states, value_states), strict=True):
            slots[:, :, first : first + new.shape[2]] = new
        self.keys, self.values = (x[:, :, : first + key_states.shape[2]] for x in self.slots)
        return self.keys, self.values


def main() -> None:
    work = asked()
    torch.set_num_threads(work.threads)
    device, folder = "cuda" if torch.cuda.is_available() else "cpu", Path(work.folder)
    dtype = getattr(torch, work.dtype)
    model: Any = AutoModelForCausalLM.from_pretrained(folder / DECODER, dtype=dtype)
    model = model.eval().to(device)

    def starts(history: int, batch: int, systems: Sequence[str]) -> dict[str, Start]:
        told = read(folder, history)
        tokens = torch.from_numpy(told.tokens).to(device)[None].repeat(batch, 1)
        prefix, question = tokens[:, : told.kept], tokens[:, told.kept :]
        event = tokens[:, : told.event]
        makers = {
            "transformers": lambda: lambda: answer(model, tokens, work.tokens, DynamicCache()),
            "transformers, prefix kept": lambda: kept(model, prefix, question, work.tokens),
            "transformers, new event": lambda: kept(model, prefix, event, 1),
        }
        return {system: makers[system]() for system in systems}

    with torch.inference_mode():
        measure(starts, work)


def answer(model: Any, given: torch.Tensor, tokens: int, cache: Cache) -> Iterator[list[int]]:
    for _ in range(tokens):
        out = model(given, past_key_values=cache, use_cache=True, logits_to_keep=1)
        given = out.logits[:, -1].argmax(-1, keepdim=True)
        yield given[:, 0].tolist()


def kept(model: Any, prefix: torch.Tensor, rest: torch.Tensor, tokens: int) -> Start:
    """Answers that begin from a prefix's keys and values."""
    begun = DynamicCache()
    model(prefix[:1], past_key_values=begun, use_cache=True, logits_to_keep=1)
    room = prefix.shape[1] + rest.shape[1] + tokens

    def roomy(layer: Any) -> Roomy:
        keys, values = (x.expand(len(prefix), -1, -1, -1) for x in (layer.keys, layer.values))
        return Roomy(keys, values, room)

    cache = Cache(layers=[roomy(layer) for layer in begun.layers])

    def start() -> Iterator[list[int]]:
        cache.crop(prefix.shape[1] - cache.get_seq_length())
        yield from answer(model, rest, tokens, cache)

    return start


if __name__ == "__main__":
    main()
