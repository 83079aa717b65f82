"""The processes of a job, one on each machine: how they find each other, and what each can read."""

import os
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def join() -> None:
    """Makes this process one of a job's, where it is; to be called before JAX has any device.

    It is, where `JAX_COORDINATOR_ADDRESS` says where process 0 listens (then `JAX_NUM_PROCESSES`
    and `JAX_PROCESS_ID` say how many there are and which this is), where SLURM's `srun` has started
    several tasks, and on a TPU slice of several hosts. JAX finds out the rest.

    Raises:
      ValueError: `JAX_NUM_PROCESSES` or `JAX_PROCESS_ID` is no number.
    """
    if jax.distributed.is_initialized():
        return
    said = os.environ.get
    if said("JAX_COORDINATOR_ADDRESS"):
        count, own = _number("JAX_NUM_PROCESSES"), _number("JAX_PROCESS_ID")
        told = None not in (count, own)  # then nothing is left to find out
        jax.distributed.initialize(
            num_processes=count,
            process_id=own,
            cluster_detection_method="deactivate" if told else None,
        )
    elif (said("SLURM_STEP_ID") and int(said("SLURM_NTASKS", "1")) > 1) or "," in said(
        "TPU_WORKER_HOSTNAMES", ""
    ):
        jax.distributed.initialize()


def _number(name: str) -> int | None:
    if (text := os.environ.get(name)) is None:
        return None
    if not text.isdecimal():
        raise ValueError(f"the environment has {name}={text!r}, which is no number")
    return int(text)


def host(x: Any) -> np.ndarray:
    """An array of all devices in this process's memory, which each process must ask for."""
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        return multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)
