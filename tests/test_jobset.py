"""JobSets: as their schema has them, and the same words at the other end."""

import copy
import re

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from manifests_made import ENV, ROOT, TWO, WORDS, job, rendered, strange

from user_llm.config import MeshConfig


@pytest.fixture(scope="session")
def schema(data_folder) -> jsonschema.Draft202012Validator:
    """JobSet's own schema, by which a field that it does not know is an error."""
    crd = yaml.safe_load((data_folder / "schemas/jobset_crd_v0.12.yaml").read_text())
    tree = copy.deepcopy(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"])

    def tighten(node):
        if isinstance(node, dict):
            if "properties" in node and not node.get("x-kubernetes-preserve-unknown-fields"):
                node.setdefault("additionalProperties", False)
            if node.pop("x-kubernetes-int-or-string", False):
                node.pop("anyOf", None)
                node["type"] = ["integer", "string"]
        for child in node.values() if isinstance(node, dict) else node:
            if isinstance(child, dict | list):
                tighten(child)

    tighten(tree)
    tree["properties"]["metadata"] = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
        },
        "additionalProperties": False,
    }
    return jsonschema.Draft202012Validator(tree)


def expanded(text: str) -> str:
    """What Kubernetes makes of a value while no variable is known: `$$` is `$`."""
    return re.sub(
        r"\$\$|\$\([^)]*\)", lambda found: found[0][-1] if found[0] == "$$" else "?", text
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gpus": ""},
        {"gpus": "nvidia-h100-80gb:8"},
        {"gpus": "", "nodes": 1, "tpu": "v5e:2x4"},
        {"gpus": "", "nodes": 1, "tpu": "v5p:8x8x16", "mesh": MeshConfig(slices=4)},
    ],
    ids=str,
)
def test_a_jobset_is_what_its_schema_knows_and_no_more(schema, options):
    made = rendered(job("jobset", **options))
    assert list(schema.iter_errors(made)) == []
    made["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["graceful"] = 3
    assert [error.validator for error in schema.iter_errors(made)] == ["additionalProperties"]


@given(env=ENV, words=WORDS)
@settings(max_examples=50)
def test_a_jobset_carries_any_text_whole(schema, env, words):
    made = strange("jobset", env, words)
    tree = rendered(made)
    assert list(schema.iter_errors(tree)) == []
    container = worker(tree)["containers"][0]
    assert [expanded(word) for word in container["command"]] == list(made.command)
    told = {one["name"]: expanded(one["value"]) for one in container["env"] if "value" in one}
    assert told.items() >= env.items()


def worker(tree: dict) -> dict:
    return tree["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def test_a_tpu_slice_fills_a_job_of_a_jobset():
    tree = rendered(job("jobset", gpus="", nodes=1, tpu="v5e:16x16", mesh=TWO, grace=77))
    replicated = tree["spec"]["replicatedJobs"][0]
    each = replicated["template"]["spec"]
    assert (replicated["replicas"], each["parallelism"], each["completions"]) == (2, 64, 64)
    pod = worker(tree)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "16x16",
    }
    assert pod["containers"][0]["resources"] == {"limits": {"google.com/tpu": 4}}
    assert pod["terminationGracePeriodSeconds"] == 77
    assert {one["name"] for one in pod["containers"][0]["env"]} == {"JAX_COMPILATION_CACHE_DIR"}


def test_pods_without_tpus_are_told_where_to_meet():
    env = {one["name"]: one for one in worker(rendered(job("jobset")))["containers"][0]["env"]}
    assert env["JAX_COORDINATOR_ADDRESS"]["value"] == "x-worker-0-0.x:8476"
    assert env["JAX_NUM_PROCESSES"]["value"] == "2"
    path = env["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert path == "metadata.annotations['batch.kubernetes.io/job-completion-index']"


@pytest.mark.parametrize(
    ("code", "disrupted", "fate"),
    [
        (1, False, "FailJobSet"),
        (2, False, "FailJobSet"),
        (126, False, "FailJobSet"),
        (42, False, "RestartJobSet"),
        (127, False, "RestartJobSet"),
        (137, False, "RestartJobSet"),
        (255, False, "RestartJobSet"),
        (None, False, "RestartJobSet"),  # a pod that never ran
        (1, True, "RestartJobSet"),  # on a node that is taken away
    ],
)
def test_a_jobset_starts_anew_on_42_and_from_127_on(code, disrupted, fate):
    """By the rules of batch/v1 and of JobSet: the first rule that matches decides."""
    spec = rendered(job("jobset", max_restarts=7))["spec"]
    each = spec["replicatedJobs"][0]["template"]["spec"]
    assert (spec["failurePolicy"]["maxRestarts"], each["backoffLimit"]) == (7, 0)

    def matches(rule: dict) -> bool:
        if "onPodConditions" in rule:
            return disrupted and rule["onPodConditions"][0]["type"] == "DisruptionTarget"
        of = rule["onExitCodes"]
        assert of["operator"] == "NotIn" and len(of["values"]) <= 255 and 0 not in of["values"]
        return code is not None and code not in of["values"]

    actions = [rule["action"] for rule in each["podFailurePolicy"]["rules"] if matches(rule)]
    reason = "PodFailurePolicy" if actions[:1] == ["FailJob"] else "BackoffLimitExceeded"
    rules = [r for r in spec["failurePolicy"]["rules"] if reason in r["onJobFailureReasons"]]
    assert (rules[0]["action"] if rules else "RestartJobSet") == fate


def test_the_example_of_a_jobset_is_what_its_schema_knows(schema):
    made = yaml.safe_load((ROOT / "launch/jobset.yaml").read_text())
    assert list(schema.iter_errors(made)) == []
