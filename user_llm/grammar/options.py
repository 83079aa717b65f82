"""What verbs have in common: how one is added to its group, and what its options are read as."""

import argparse
from pathlib import Path
from typing import Any

Verbs = Any  # what `add_subparsers` returns, a type that argparse keeps to itself

EVENTS = "a table of user, item, timestamp, ...: .parquet, .csv, .json or .jsonl"
RUN = "the folder of a run"
SET = "the folder of a built data set"
WRITTEN = "where everything is written"


def run(text: str) -> Any:
    """The folder of a run, on this machine or in a bucket.

    Raises:
      ArgumentTypeError: it is in a store that cannot be written to.
    """
    from user_llm.files import to_path

    try:
        return to_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def local(text: str) -> Path:
    """A path on this machine.

    Raises:
      ArgumentTypeError: it is elsewhere.
    """
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text} is not on this machine, where it is to be")
    return Path(text)


def add(verbs: Verbs, verb: str, text: str) -> argparse.ArgumentParser:
    """A new verb's parser; of `data build`, in the group of `data`."""
    sub = verbs.add_parser(verb.split()[-1], help=text, description=text)
    sub.set_defaults(verb=verb)
    return sub


def group(verbs: Verbs, name: str, text: str) -> Verbs:
    """The verbs that are to follow a first one."""
    sub = verbs.add_parser(name, help=text)
    return sub.add_subparsers(title="verbs", metavar="VERB", required=True)


def count(
    sub: argparse.ArgumentParser, flag: str, default: int, text: str, metavar: str = "N"
) -> None:
    """Adds a flag of a whole number."""
    text += " (default: %(default)s)"
    sub.add_argument(flag, type=int, default=default, metavar=metavar, help=text)


def rest(sub: argparse.ArgumentParser, shown: str, text: str) -> None:
    """Leaves all further flags to the parser of what comes before them."""
    given = sub.add_argument("flags", nargs=argparse.REMAINDER, metavar=shown, help=text)
    given.required = False
