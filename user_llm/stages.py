"""The stages of a run: an encoder learns users, a decoder words, then the decoder reads users.

Each stage returns its parameters, and goes on where it was interrupted.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import jax
import numpy as np
from flax import nnx

from user_llm.config import DIFFERENCE, TEXT_VECTOR, StageConfig, SystemConfig
from user_llm.data import differences as apart
from user_llm.data import pipeline, timelines
from user_llm.data.dataset import Dataset
from user_llm.data.examples import Examples, Hinted
from user_llm.data.tasks import TASKS, NextItem, Task, practice
from user_llm.data.timelines import sample
from user_llm.files import to_path, write_atomically
from user_llm.huggingface import import_text_encoder, load_decoder
from user_llm.inference import event_vectors, text_vectors
from user_llm.inference.next_item import encoder_ranker
from user_llm.metrics import Ranking
from user_llm.models.streams import own_columns
from user_llm.models.user_llm import UserLLM, trained
from user_llm.runs import Run, differing_fields
from user_llm.sharding import batch_sharding, replicated
from user_llm.sources import data_path
from user_llm.training import grow, losses
from user_llm.training.checkpoint import Checkpoints
from user_llm.training.language import foreteller
from user_llm.training.loop import Stage, fit
from user_llm.training.step import Lesson, Params

ALIGNMENT_HISTORY = 8  # events
KNOWN = "features.json"  # what the encoder in its folder is numbered by
RANKED = 8192  # users whose next items judge an encoder while it learns
ANSWERED = 1024  # users whose answers judge a system; each costs a pass of the decoder


def pretraining(run: Run) -> Lesson:
    """What the encoder of a run is to learn."""
    config = run.experiment.pretrain
    loss = partial(losses.encoder_loss, objective=config.objective)
    return Lesson(config=config, make_model=run.make_encoder, loss=loss)


def finetuning(run: Run, name: str = "user_llm") -> Lesson:
    """What the system of that name is to learn."""
    system, config = run.systems[name], run.experiment.finetune
    make_model = run.make_model(system)
    if not moves(make_model, system):
        config = config.model_copy(update={"steps": 0})
    return Lesson(config=config, make_model=make_model, loss=losses.answer, trained=trained(system))


def pretrain(run: Run) -> Params:
    """The encoder, trained on every next event; the best by NDCG@10 of the validation targets.

    Source: arXiv 2402.13598, section 3.1.
    """
    data = run.dataset
    source = training_windows(run)
    targets = sample(run.split.validation, RANKED)
    ranks = encoder_ranker(run.make_encoder, data, targets, mesh=run.mesh)

    def validate(params: Params) -> dict[str, float]:
        figures = Ranking.from_ranks(ranks(params)).compute()
        names = ("ndcg_at_10", "recall_at_10")
        return {f"validation/{name}": figures[name] for name in names}

    stage = Stage(
        **vars(pretraining(run)),
        batches=batches(run, source, run.experiment.pretrain),
        given=partial(grown, run) if run.experiment.grow_from else None,
        validate=validate,
    )
    known = run.folder / "pretrain" / KNOWN
    if not known.is_file():
        known.parent.mkdir(exist_ok=True)
        write_atomically(known, grow.Known.of(data).model_dump_json())
    return train(run, stage, "pretrain")


def training_windows(run: Run) -> pipeline.PackedTimelines:
    """The rows of training events that an encoder is pre-trained on."""
    (data, _, stops), window = run.training_of(run.dataset), run.experiment.encoder.window
    ranges = timelines.windows(data.offsets[:-1], stops, window)
    return pipeline.PackedTimelines(data, *timelines.pack(ranges, window), window)


def grown(run: Run, fresh: Params) -> Params:
    """The trained encoder of the run that `grow_from` names, under the ids of this run's data.

    Raises:
      ValueError: it is another encoder or reads other features; all that differs is named.
    """
    old = run.earlier
    free = {"window", "dropout", "id_dropout", "dtype"}  # shapes tell where the window matters
    configs = [r.experiment.encoder.model_dump(exclude=free) for r in (old, run)]
    try:
        if differing := differing_fields(*configs):
            raise ValueError("another encoder, encoder." + ", encoder.".join(differing))
        path = old.folder / "pretrain" / KNOWN
        if path.is_file():
            was = grow.Known.model_validate_json(path.read_text())
        else:
            was = grow.Known.of(old.dataset)
        now = grow.Known.of(run.dataset)
        abstract = grow.wanted(fresh, was, now, replicated(run.mesh))
        saved = Checkpoints(old.folder / "pretrain" / "checkpoints").restore_params(abstract)
    except ValueError as error:
        raise ValueError(f"no encoder can grow from {old.folder}: {error}") from error
    return grow.grow(fresh, saved.state, was, now)


def encoder(run: Run) -> Params:
    """The trained encoder of this run, or of the run that its experiment names."""
    if not (folder := run.experiment.encoder_from):
        return pretrain(run)
    other = Run.open(to_path(folder), run.data_dir)
    run.share(other)
    return pretrain(other)


def warmup(run: Run) -> Params:
    """The decoder, taught the catalogue's and the domain's words before it meets users."""
    data, tokenizer, config = run.dataset, run.tokenizer, run.experiment.warmup
    asked = practice(
        list(tasks(run, stops=run.split.train_stop)), data, run.training_events, run.experiment.seed
    )
    prompts = tokenizer.prompts([question.prompt for question in asked])
    answers = tokenizer.answers([question.answer for question in asked])
    documents = [p + a for p, a in zip(prompts, answers, strict=True)] * config.practice
    documents += [[*ids, tokenizer.eos] for ids in tokenizer.prompts(run.texts.training)]
    source = pipeline.Documents(documents, config.tokens or run.experiment.finetune.max_tokens)
    make_model = run.make_model(SystemConfig(streams=()))

    def given(random: Params) -> Params:
        if lender := run.language_model_run:
            tuned = run.experiment.language_model.from_stage == "finetune"
            return {"decoder": (finetune if tuned else warmup)(lender)["decoder"]}
        weights = run.experiment.language_model.weights
        return {"decoder": load_decoder(data_path(weights), random["decoder"])} if weights else {}

    stage = Stage(
        config=config,
        make_model=make_model,
        loss=losses.answer,
        batches=batches(run, source, config),
        given=given,
        validate=text_validation(run, make_model),
    )
    return train(run, stage, "warmup")


def text_validation(run: Run, make_model: Callable[..., UserLLM]):
    """A function of parameters: the mean log-likelihood of a token of the held-out texts.

    None where no text is held out.
    """
    if not (texts := run.held_out_texts):
        return None
    foretell = foreteller(make_model, texts, run.tokenizer, run.mesh)

    def validate(params: Params) -> dict[str, float]:
        return {"validation/log_likelihood": -math.log(foretell(params["decoder"])["perplexity"])}

    return validate


def align(run: Run) -> Params:
    """The experiment's system, taught to name the item that a user's newest state points at.

    Each state is turned towards the item that comes next, by a random share. What real states only
    hint at is said outright here, so the decoder learns from few examples how items are named.
    The encoder stays as it is.
    """
    system, config = run.experiment.system, run.experiment.align
    shown = training_examples(run, "user_llm", NextItem, history=ALIGNMENT_HISTORY)
    source = Hinted(shown)
    stage = Stage(
        config=config,
        make_model=run.make_model(system),
        loss=losses.answer,
        batches=batches(run, source, config),
        trained=trained(system.model_copy(update={"encoder_frozen": True})),
        given=lambda random: pretrained(run, system),
    )
    return train(run, stage, "align")


def pretrained(run: Run, system: SystemConfig) -> Params:
    """The parts of a system that earlier stages trained: the decoder, and the encoders it has."""
    streams = {}
    if "timeline" in system.streams:
        streams["timeline"] = {"encoder": encoder(run)}
    if "persona" in system.streams and system.persona.weights == "attention":
        reader = import_text_encoder(run.text_encoder_folder, run.mesh)
        streams["persona"] = {"text_encoder": nnx.to_pure_dict(nnx.state(reader, nnx.Param))}
    return {"streams": streams, "decoder": warmup(run)["decoder"]}


def read_by(run: Run, name: str) -> Dataset:
    """The data set as a system's streams read it, with the columns that are made for them."""
    system = run.systems[name]
    if {"timeline", "persona"}.issuperset(system.streams):
        return run.dataset
    if run.widened is None:
        data = run.dataset
        if "difference" in system.streams:
            data = data.with_column(DIFFERENCE, differences(run, system))
        for column, values in own_columns(system.streams, data).items():
            data = data.with_column(column, values)
        run.widened = data
    return run.widened


def differences(run: Run, system: SystemConfig) -> np.ndarray:
    """What sets each event apart from those of peers, and whether anything does [N, D + 1]."""
    data, config = run.dataset, system.difference
    if config.vectors == "text":
        column = data.features[TEXT_VECTOR]
        source = text_vectors.encoder_hash(run.text_encoder_folder)
        compared = apart.Compared(column[:, :-1], column[:, -1] > 0, source)
    else:
        made = event_vectors.of(
            data, run.make_encoder, encoder(run), run.mesh, run.data_dir / "event_vectors"
        )
        compared = apart.Compared(made.vectors, np.ones(len(made.vectors), bool), made.source)
    return apart.column(data, compared, config.peers, run.data_dir / "differences")


def finetune(run: Run, name: str = "user_llm") -> Params:
    """The system of that name, from what the stages before have trained."""
    system, config = run.systems[name], run.experiment.finetune
    source = training_examples(run, name, drop=config.drop_history)

    def given(random: Params) -> Params:
        aligned = system.remembers and run.experiment.align.steps
        return align(run) if aligned else pretrained(run, system)

    stage = Stage(
        **vars(finetuning(run, name)),
        batches=batches(run, source, config),
        given=given,
        validate=answer_validation(run, name),
    )
    return train(run, stage, f"finetune-{name}")


def answer_validation(run: Run, name: str):
    """A function of parameters: the mean log-likelihood of a token of a validation answer.

    None where no task asks of a validation target.
    """
    targets = run.split.validation
    targets = sample(targets[fitting(tasks(run), targets)], ANSWERED)
    if not len(targets):
        return None
    source = examples(run, name, targets)
    size = run.experiment.finetune.batch_size
    graphdef = nnx.graphdef(
        nnx.eval_shape(lambda: run.make_model(run.systems[name])(rngs=nnx.Rngs(0)))
    )

    @jax.jit
    def loss(params, batch):
        value, metrics = losses.answer_tokens(nnx.merge(graphdef, params), batch)
        return value * metrics["tokens"], metrics["tokens"]

    def validate(params: Params) -> dict[str, float]:
        total, count = 0.0, 0.0
        for rows, length in pipeline.chunks(np.arange(len(source)), size):
            batch = source.batch(rows, rows)
            batch["weights"][length:] = 0
            sums = loss(params, jax.device_put(batch, batch_sharding(run.mesh)))
            total, count = total + float(sums[0]), count + float(sums[1])
        return {"validation/log_likelihood": -total / max(count, 1.0)}

    return validate


def moves(make_model, system: SystemConfig) -> bool:
    """Whether the system's strategy trains any of its parameters."""
    model = nnx.eval_shape(lambda: make_model(rngs=nnx.Rngs(0)))
    return bool(jax.tree.leaves(nnx.state(model, trained(system))))


def tasks(
    run: Run, data: Dataset | None = None, stops: np.ndarray | None = None
) -> dict[Task, float]:
    """The experiment's tasks with their shares; `data` and `stops` are what they know."""
    shares = run.experiment.finetune.tasks
    noun = run.experiment.data.noun
    return {TASKS[name](data or run.dataset, noun, stops): x for name, x in shares.items()}


def examples(
    run: Run,
    name: str,
    targets: np.ndarray,
    *,
    data: Dataset | None = None,
    asked: dict[Task, float] | None = None,
    history: int | None = None,
    drop: float = 0.0,
) -> Examples:
    """What a system of the run is asked about these events: by default, as in its fine-tuning."""
    config, system = run.experiment.finetune, run.systems[name]
    return Examples(
        data or read_by(run, name),
        targets,
        asked or tasks(run, data),
        run.tokenizer,
        history=history or config.history,
        max_tokens=run.experiment.evaluation.text_tokens if system.told else config.max_tokens,
        text_history=system.text_history,
        retrieval=system.retrieval,
        text_summary=system.text_summary,
        first_item=run.decoder_config.vocab_size if system.item_tokens else None,
        drop=drop,
        passages=run.passages(system),
        places=system.difference.places if system.interleaved else None,
    )


def training_examples(
    run: Run,
    name: str,
    only: type[Task] | None = None,
    *,
    history: int | None = None,
    drop: float = 0.0,
) -> Examples:
    """The same about every training event that has another before it; of all tasks, or `only` one.

    Held-out items are in no history and no answer. Events of which no task asks are left out.
    """
    data, firsts, stops = run.training_of(read_by(run, name))
    targets = timelines.training_targets(firsts, stops, data.offsets)
    asked = {only(data, run.experiment.data.noun, stops): 1.0} if only else tasks(run, data, stops)
    targets = targets[fitting(asked, targets)]
    return examples(run, name, targets, data=data, asked=asked, history=history, drop=drop)


def fitting(asked: Iterable[Task], targets: np.ndarray) -> np.ndarray:
    """Of which of these events any of the tasks asks."""
    return np.any([task.fits(targets) for task in asked], axis=0)


def batches(run: Run, source: pipeline.Source, config: StageConfig):
    """What a stage asks for: the batches of a source from a step on."""

    def start(step: int) -> Iterator[dict]:
        return pipeline.batches(
            source,
            batch_size=config.batch_size,
            steps=config.steps,
            seed=run.experiment.seed,
            mesh=run.mesh,
            start=step,
            workers=config.workers,
        )

    return start


def train(run: Run, stage: Stage, name: str) -> Params:
    """`fit` in the run's folder of that name."""
    return fit(
        stage,
        folder=run.folder / name,
        mesh=run.mesh,
        seed=run.experiment.seed,
        config=run.config,
        name=name,
        profiled=run.profiled,
    )
