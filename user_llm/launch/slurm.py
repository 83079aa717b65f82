"""A job as a batch script of SLURM."""

import shlex

from user_llm.launch.job import Job


def script(job: Job, header: str) -> str:
    """The script: a process for each GPU, as JAX expects of SLURM, or for each node without any.

    `--signal` sends SIGTERM to the processes ahead of the time limit, not to the script, which
    lives on to say whether they start anew.
    """
    directives = {
        "job-name": job.name,
        "nodes": job.nodes,
        "ntasks-per-node": job.gpus_per_node or 1,
        "gpus-per-node": job.gpus,
        "output": "%x-%j.log",
        "open-mode": "append",
        "requeue": None,
        "signal": f"TERM@{job.grace}",
    }
    lines = [
        f"#SBATCH --{name}" if value is None else f"#SBATCH --{name}={value}"
        for name, value in directives.items()
        if value != ""
    ]
    exports = [f"export {name}={shlex.quote(text)}" for name, text in job.variables.items()]
    # A process that saves is not to be killed because another one has done so and left.
    step = ["srun", "--kill-on-bad-exit=0"]
    if job.image:
        step.append(f"--container-image={shlex.quote(job.image)}")
        step += ['--container-mounts="$PWD:$PWD"', '--container-workdir="$PWD"']
    step.append(shlex.join(job.command))
    return "\n".join(
        [
            "#!/bin/bash",
            header,
            *lines,
            "",
            "trap : TERM # the script outlives its processes, which are sent it too",
            *exports,
            "",
            "code=0",
            " ".join(step) + " || code=$?",
            "",
            "restarts=${SLURM_RESTART_COUNT:-0}",
            "if ((code == 42 || code >= 127)); then",
            f"  if ((restarts < {job.max_restarts})); then",
            '    echo "exit code $code: starts anew, after $restarts restarts" >&2',
            '    scontrol requeue "$SLURM_JOB_ID"',
            "  else",
            '    echo "exit code $code: gives up after $restarts restarts" >&2',
            "  fi",
            "fi",
            'exit "$code"',
            "",
        ]
    )
