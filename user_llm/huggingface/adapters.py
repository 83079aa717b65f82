"""LoRA's factors in the layout of PEFT: `adapter_config.json` and `adapter_model.safetensors`."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from user_llm.config import PROJECTIONS, LoRAConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
KEY = "base_model.model.model.layers.{layer}.{projection}.lora_{factor}.weight"
# Attributes that are without effect, or of which one value is supported.
KNOWN = {
    *("base_model_name_or_path", "inference_mode", "lora_dropout", "revision"),
    *("auto_mapping", "task_type", "peft_version", "ensure_weight_tying", "r", "lora_alpha"),
    *("target_modules", "runtime_config", "megatron_core", "qalora_group_size"),
}
ONLY = {"peft_type": "LORA", "bias": "none"}
# Ways to start that leave the base as it is; others subtract the factors from it.
STARTS = (True, "gaussian", "eva", "orthogonal")


def adapter_config(folder: str | Path) -> LoRAConfig:
    """The adapters that a folder's `adapter_config.json` describes.

    Raises:
      ValueError: there is none, or it asks for what LoRAConfig cannot say; all that is named.
    """
    path = Path(folder, CONFIG)
    try:
        given = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a readable {CONFIG}: {error}") from error
    # Whatever else PEFT knows changes nothing while it is off.
    odd = {k: v for k, v in given.items() if k not in KNOWN and v != ONLY.get(k) and v}
    if odd.get("init_lora_weights") in STARTS:
        del odd["init_lora_weights"]
    targets = given.get("target_modules")
    if not isinstance(targets, list) or not targets:
        odd["target_modules"] = targets
    odd |= {k: None for k in ("r", "lora_alpha") if given.get(k) is None}
    if odd:
        told = ", ".join(f"{k}={v!r}" for k, v in sorted(odd.items()))
        raise ValueError(f"{path} describes no supported adapter: {told}")
    return LoRAConfig(rank=given["r"], alpha=given["lora_alpha"], targets=tuple(sorted(targets)))


def save_adapter(folder: str | Path, lora: LoRAConfig, params: dict, base: str = "") -> None:
    """Writes the adapters of a decoder so that PEFT reads them.

    Args:
      params: the decoder's, nested dicts of stacks.
      base: the folder or name of the decoder that they belong to.

    Raises:
      ValueError: the decoder has none, or others than `lora` describes.
    """
    adapted, tensors = _projections(params, lora), {}
    for projection, factors in adapted.items():
        for factor in "ab":
            for layer, x in enumerate(np.asarray(factors[f"lora_{factor}"])):
                key = KEY.format(layer=layer, projection=projection, factor=factor.upper())
                tensors[key] = np.ascontiguousarray(x.T)
    if not adapted:
        raise ValueError(f"{folder} cannot be written: the decoder has no adapters")
    said = ONLY | {
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": list(adapted),
        "base_model_name_or_path": base or None,
        "task_type": "CAUSAL_LM",
        "lora_dropout": 0.0,
        "inference_mode": True,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".unfinished-") as place:
        save_file(tensors, Path(place, WEIGHTS), {"format": "pt"})
        Path(place, CONFIG).write_text(json.dumps(said, indent=2))
        for name in (WEIGHTS, CONFIG):
            Path(place, name).chmod(0o644)
            Path(place, name).replace(folder / name)


def load_adapter(folder: str | Path, lora: LoRAConfig, params: dict) -> dict:
    """The decoder's parameters with the adapters of a folder, which its config describes as `lora`.

    Raises:
      ValueError: tensors are unknown, missing or of another shape, all named at once; or the file
        is missing or cut short.
    """
    path = Path(folder, WEIGHTS)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is missing or cut short, fetch it again ({error})") from error
    problems, found = [], {}
    for projection, factors in _projections(params, lora).items():
        for factor in ("lora_a", "lora_b"):
            stack = factors[factor]
            keys = [
                KEY.format(layer=i, projection=projection, factor=factor[-1].upper())
                for i in range(len(stack))
            ]
            parts = {key: tensors.pop(key, None) for key in keys}
            for key, x in parts.items():
                if x is None:
                    problems.append(f"{key} is missing")
                elif x.T.shape != stack.shape[1:]:
                    wanted = stack.shape[:0:-1]
                    problems.append(f"{key} has shape {x.shape}, the decoder wants {wanted}")
            found[projection, factor] = parts
    problems += [f"{key} has no place in the decoder" for key in sorted(tensors)]
    if problems:
        raise ValueError(f"{folder} does not fit the decoder: " + "; ".join(problems))
    layers = dict(params["layers"])
    for (projection, factor), parts in found.items():
        module, name = projection.split(".")
        old = layers[module][name]
        stack = np.stack([x.T for x in parts.values()]).astype(old[factor].dtype)
        stack = jax.device_put(stack, old[factor].sharding)
        layers[module] = layers[module] | {name: old | {factor: stack}}
    return params | {"layers": layers}


def _projections(params: dict, lora: LoRAConfig) -> dict[str, dict[str, Any]]:
    """The projections that have adapters, by their names with their modules.

    Raises:
      ValueError: they are not those that `lora` describes.
    """
    found = {
        f"{module}.{name}": params["layers"][module][name]
        for module, names in PROJECTIONS.items()
        for name in names
        if "lora_a" in params["layers"][module][name]
    }
    said = {f"{module}.{name}" for module in PROJECTIONS for name in lora.of(module).targets}
    ranks = {factors["lora_a"].shape[-1] for factors in found.values()}
    if found and (found.keys() != said or ranks != {lora.rank}):
        raise ValueError(
            f"the decoder has adapters of rank {sorted(ranks)} on {sorted(found)}; described are "
            f"rank {lora.rank} on {sorted(said)}"
        )
    return found
