"""A job as a task of SkyPilot, for `sky jobs launch`."""

import shlex
from typing import Any

from user_llm.launch.job import PORT, RESTARTED, Job

FOLDER = "/user_llm"  # of the image, in which the configs lie; SkyPilot begins at home
# SkyPilot says it of the nodes that it kills because another one has failed, for whatever reason.
KILLED = 137
MEETING = f"""\
export JAX_COORDINATOR_ADDRESS="$(head --lines=1 <<<"$SKYPILOT_NODE_IPS"):{PORT}"
export JAX_NUM_PROCESSES="$SKYPILOT_NUM_NODES"
export JAX_PROCESS_ID="$SKYPILOT_NODE_RANK"
"""


def task(job: Job) -> dict[str, Any]:
    """The task; a TPU slice of several hosts is a single node to SkyPilot, which runs on each."""
    resources: dict[str, Any] = {"image_id": f"docker:{job.image}"}
    if job.slice:
        resources["accelerators"] = f"tpu-{job.slice.accelerator_type}:1"
        resources["accelerator_args"] = {"runtime_version": job.slice.generation.runtime}
    elif job.gpus:
        resources["accelerators"] = job.gpus
    codes = [code for code in RESTARTED if code != KILLED]
    resources["job_recovery"] = {"max_restarts_on_errors": 0, "recover_on_exit_codes": codes}
    return {
        "name": job.name,
        "num_nodes": job.nodes,
        "resources": resources,
        "envs": job.variables,
        "run": _script(job),
    }


def _script(job: Job) -> str:
    """What runs on each host; those of a TPU slice ask their cloud who they are."""
    return (
        f"cd {FOLDER} || exit 1\n"
        "trap : TERM # the script outlives the program, which is sent it too\n"
        f"{'' if job.slice else MEETING}"
        "code=0\n"
        f"{shlex.join(job.command)} || code=$?\n"
        f"exit $((code == {KILLED} ? 255 : code))\n"
    )
