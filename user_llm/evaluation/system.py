"""A fine-tuned system, asked: memory, prompt, and an answer written or chosen."""

import dataclasses
from collections.abc import Sequence
from typing import TypedDict

import jax
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, Int
from tqdm.auto import tqdm

from user_llm import stages
from user_llm.data.examples import Asking, Examples
from user_llm.data.features import KNOWN
from user_llm.data.tasks import NextItem, Task
from user_llm.inference.buckets import row_length
from user_llm.inference.catalog import Catalog, beam_search
from user_llm.inference.generate import Generator
from user_llm.inference.next_item import chunks, seen_items
from user_llm.models.layers import Memory
from user_llm.runs import Run
from user_llm.training.step import Params

PROMPTS = 2**15  # tokens that are read at a time, unless one prompt alone has more


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a system answered to one task about N events.

    Where a task lists its candidates, `choices` are indices into them, best first, -1 where there
    are no more, with the log-probability of each; `texts` are the best ones.
    """

    texts: list[str]
    choices: Int[np.ndarray, "N beam"] | None = None
    scores: Float[np.ndarray, "N beam"] | None = None

    def expected(self, values: Sequence[float]) -> list[float]:
        """The mean of the candidates' values, each as likely as its answer is among the choices.

        It moves with a system's belief where the likeliest answer is the same to everybody.
        """
        assert self.choices is not None and self.scores is not None, "there are candidates"
        likely = np.exp(self.scores - self.scores.max(1, keepdims=True))  # 0 where there is none
        return ((likely * np.array(values)[self.choices]).sum(1) / likely.sum(1)).tolist()


class Context(TypedDict, total=False):
    """A user's memory, under the name by which the generator takes it."""

    memory: Memory  # for the cross-attentions
    prefix: Memory  # before the prompt


class System:
    """A fine-tuned system of a run, ready to be asked.

    Items are chosen by beam search over the catalogue, which scores a title by its exact
    log-likelihood and finds the best of `evaluation.beam` prefixes at a time.

    Args:
      name: the system's among `run.systems`: `user_llm`, or a baseline's.
      params: its parameters, as `finetune` returns them.
    """

    def __init__(self, run: Run, name: str, params: Params):
        self.run, self.name, self.params = run, name, params
        self.config = run.systems[name]
        make_model = run.make_model(self.config)
        graphdef = nnx.graphdef(nnx.eval_shape(lambda: make_model(rngs=nnx.Rngs(0))))
        self.model = nnx.merge(graphdef, params)
        self.generator = Generator(self.model.speaker())

        @jax.jit
        def memory(params, batch):
            model = nnx.merge(graphdef, params)
            return model.fuse(model.memories(batch))

        @jax.jit
        def attention(params, batch):
            return nnx.merge(graphdef, params).attention(batch)

        self._memory, self.attention = memory, attention

    def memory(
        self, examples: Examples, rows: Int[np.ndarray, " B"], asked: Sequence[Asking] = ()
    ) -> Context:
        """The memory of these examples' users; empty for a system that reads none.

        For what is `asked` of them, where a stream's memory depends on it.
        """
        if not self.config.remembers:
            return {}
        found = self._memory(self.params, examples.timelines(rows) | examples.present(asked))
        return {"memory": found} if self.config.crossed else {"prefix": found}

    def answer(
        self,
        task: Task,
        targets: Int[np.ndarray, " N"],
        users: Int[np.ndarray, " N"] | None = None,
    ) -> Answers:
        """The answers to a task about these events, by the memory of `users`, else by their own.

        Args:
          targets: events of the run's data set, each asked about as if it had not yet been.
          users: as many events, before which those users are remembered in place of the targets'.
        """
        examples = stages.examples(self.run, self.name, targets)
        remembered = examples if users is None else stages.examples(self.run, self.name, users)
        catalog, found = self._catalog(task), []
        _, prompts = examples.prompts([(task, target) for target in targets.tolist()])
        asked = self.cut(prompts, catalog)
        longest = row_length(max(map(len, asked), default=1))
        size = min(self.run.experiment.evaluation.batch_size, max(1, PROMPTS // longest))
        batches = list(chunks(np.arange(len(targets)), size))
        for rows, length in tqdm(batches, desc=f"{self.name} {task.name}", leave=False):
            prompts = [asked[row] for row in rows]
            memory = self.memory(remembered, rows, [(task, one) for one in targets[rows].tolist()])
            if catalog is None:
                found.append(Answers(self._write(prompts, memory)[:length]))
            else:
                seen = seen_items(self.run.dataset, targets[rows])[:, KNOWN:]
                exclude = seen if isinstance(task, NextItem) else None
                chosen, scores = self._choose(prompts, memory, catalog, exclude)
                names = [task.candidates()[best] if best >= 0 else "" for best in chosen[:, 0]]
                found.append(Answers(names[:length], chosen[:length], scores[:length]))
        texts = [text for answers in found for text in answers.texts]
        if catalog is None:
            return Answers(texts)
        stacked = (np.concatenate([getattr(a, n) for a in found]) for n in ("choices", "scores"))
        return Answers(texts, *stacked)

    def cut(self, prompts: list[list[int]], catalog: Catalog | None = None) -> list[list[int]]:
        """Prompts that leave room for an answer, no more than training's rows; the oldest go first.

        But for the very first one.
        """
        most = self.run.decoder_config.max_position_embeddings
        longest = len(catalog.fans) if catalog else 0
        answer = max(longest, self.run.experiment.evaluation.max_new_tokens)
        experiment = self.run.experiment
        told = self.config.told
        row = experiment.evaluation.text_tokens if told else experiment.finetune.max_tokens
        room = min(row, most - self.model.prefix - answer)
        return [[*ids[:1], *ids[1 + max(0, len(ids) - room) :]] for ids in prompts]

    def _write(self, prompts: list[list[int]], memory: Context) -> list[str]:
        tokenizer, length = self.run.tokenizer, self.run.experiment.evaluation.max_new_tokens
        written = self.generator.generate(
            prompts, max_new_tokens=length, stop={tokenizer.eos}, **memory
        )
        return [tokenizer.decode(ids) for ids in written]

    def _choose(
        self,
        prompts: list[list[int]],
        memory: Context,
        catalog: Catalog,
        exclude: Bool[np.ndarray, "B I"] | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        beam = min(self.run.experiment.evaluation.beam, len(catalog))
        return beam_search(self.generator, prompts, catalog, beam=beam, exclude=exclude, **memory)

    def _catalog(self, task: Task) -> Catalog | None:
        if not (names := task.candidates()):
            return None
        size = self.generator.config.vocab_size
        if isinstance(task, NextItem) and self.config.item_tokens:
            return Catalog.of_tokens(self.run.decoder_config.vocab_size + KNOWN, size)
        return Catalog(self.run.tokenizer.answers(names), size)
