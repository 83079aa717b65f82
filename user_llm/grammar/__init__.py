"""The grammar of the command line, up to the fields of an experiment; imports nothing heavy."""

import argparse

from user_llm.grammar import benchmarks, data, experiments, runs

__all__ = ["parser"]

VERBS = (  # as they are listed
    experiments.quickstart,
    experiments.stages,
    experiments.sweep,
    runs.evaluate,
    runs.report,
    benchmarks.benchmark,
    experiments.zoo,
    runs.predict,
    runs.embed,
    runs.export,
    runs.serve,
    data.embed_texts,
    data.dpl,
    data.data,
    experiments.launch,
)


def parser() -> argparse.ArgumentParser:
    """Of all verbs, whose options are arguments of what `cli.TARGETS` names."""
    made = argparse.ArgumentParser(
        prog="user-llm", description="LLMs that read a user's timeline as embeddings."
    )
    verbs = made.add_subparsers(title="verbs", metavar="VERB", required=True)
    for add_to in VERBS:
        add_to(verbs)
    return made
