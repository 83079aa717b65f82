"""A job as a JobSet of Kubernetes, with GKE's names for TPUs and GPUs."""

from typing import Any

from user_llm.launch.job import PORT, RESTARTED, Job

WORKER = "worker"
NODE_POOL = "cloud.google.com/gke-nodepool"
INDEX = "batch.kubernetes.io/job-completion-index"


def manifest(job: Job) -> dict[str, Any]:
    """The JobSet: a Job for each slice, in it a pod for each host.

    A Job whose pod exits with a code that tells of a mistake fails by its pod failure policy, and
    with it the JobSet. By any other failure the JobSet starts all of its Jobs anew: what is lost of
    a mesh is lost to all of it.
    """
    policy = [
        {"action": "Count", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {
            "action": "FailJob",
            "onExitCodes": {
                "containerName": WORKER,
                "operator": "NotIn",
                "values": list(RESTARTED),
            },
        },
    ]
    each = {
        "completionMode": "Indexed",
        "parallelism": job.hosts,
        "completions": job.hosts,
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": policy},
        "template": {"spec": _pod(job)},
    }
    metadata: dict[str, Any] = {"name": job.name}
    if job.slice:  # a slice is a node pool, which no other Job may share
        metadata["annotations"] = {"alpha.jobset.sigs.k8s.io/exclusive-topology": NODE_POOL}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "network": {"enableDNSHostnames": True},
            "failurePolicy": {
                "maxRestarts": job.max_restarts,
                "rules": [
                    {
                        "name": "mistake",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [
                {"name": WORKER, "replicas": job.slices, "template": {"spec": each}}
            ],
        },
    }


def _pod(job: Job) -> dict[str, Any]:
    container = {
        "name": WORKER,
        "image": job.image,
        "command": [_literal(word) for word in job.command],
        "env": _environment(job),
        "volumeMounts": [{"name": "memory", "mountPath": "/dev/shm"}],
    }
    pod: dict[str, Any] = {
        "restartPolicy": "Never",  # a pod failure policy needs it
        "terminationGracePeriodSeconds": job.grace,
        # Workers hand batches over in shared memory, of which containers else have 64 MB.
        "volumes": [{"name": "memory", "emptyDir": {"medium": "Memory"}}],
    }
    if job.slice:
        pod["nodeSelector"] = {
            "cloud.google.com/gke-tpu-accelerator": job.slice.generation.label,
            "cloud.google.com/gke-tpu-topology": job.slice.text,
        }
        container["resources"] = {"limits": {"google.com/tpu": job.slice.chips_per_host}}
    elif job.gpus:
        if job.gpu_kind:
            pod["nodeSelector"] = {"cloud.google.com/gke-accelerator": job.gpu_kind}
        container["resources"] = {"limits": {"nvidia.com/gpu": job.gpus_per_node}}
    return pod | {"containers": [container]}


def _environment(job: Job) -> list[dict[str, Any]]:
    """The variables; hosts of a TPU slice learn from GKE who they are, others are told here."""
    given = [{"name": name, "value": _literal(text)} for name, text in job.variables.items()]
    if job.slice:
        return given
    index = {"fieldRef": {"fieldPath": f"metadata.annotations['{INDEX}']"}}
    first = f"{job.name}-{WORKER}-0-0.{job.name}"
    return [
        *given,
        {"name": "JAX_COORDINATOR_ADDRESS", "value": f"{first}:{PORT}"},
        {"name": "JAX_NUM_PROCESSES", "value": str(job.hosts)},
        {"name": "JAX_PROCESS_ID", "valueFrom": index},
    ]


def _literal(text: str) -> str:
    """What Kubernetes reads as that text, though it puts variables in the place of `$(NAME)`."""
    return text.replace("$", "$$")
