"""Our side of the decoder's benchmark: the whole way from prompts to tokens on the host."""

from collections.abc import Iterator

import jax
import numpy as np

from user_llm.evaluation.peers.decoding import asked, measure
from user_llm.evaluation.peers.work import memory
from user_llm.huggingface import import_decoder
from user_llm.inference.generate import Generator


def main() -> None:
    baseline, work = memory(), asked()
    decoder = import_decoder(work.folder, dtype=work.dtype, param_dtype=work.dtype)
    generator = Generator(decoder, int8=work.int8)
    del decoder

    def answer(prompts: np.ndarray, tokens: int) -> Iterator[list[int]]:
        for step in generator.stream(prompts.tolist(), max_new_tokens=tokens):
            yield list(step.values())

    def peak() -> int:
        stats = jax.devices()[0].memory_stats()  # the CPU has none
        return stats["peak_bytes_in_use"] if stats else memory(peak=True) - baseline

    measure(answer, work, peak)


if __name__ == "__main__":
    main()
