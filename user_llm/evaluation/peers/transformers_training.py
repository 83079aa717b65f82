"""The peer of the decoder's training: transformers on PyTorch, with torch's fastest AdamW."""

from typing import Any

import numpy as np
import torch
import torch._dynamo  # the first step of an optimizer would import it
from torch.nn.utils import clip_grad_norm_
from transformers import AutoModelForCausalLM

from user_llm.evaluation.peers.training import asked, measure
from user_llm.evaluation.peers.work import memory


def main() -> None:
    baseline, work = memory(), asked()
    torch.set_num_threads(work.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = AutoModelForCausalLM.from_pretrained(work.folder, dtype=torch.float32)
    model = model.train().to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        work.learning_rate,
        betas=(work.beta1, work.beta2),
        weight_decay=0.0,
        fused=True,
    )

    def train(batch: np.ndarray) -> float:
        given = torch.from_numpy(batch).long().to(device)
        optimizer.zero_grad(set_to_none=True)
        loss = model(input_ids=given, labels=given, use_cache=False).loss
        loss.backward()
        clip_grad_norm_(model.parameters(), work.clip)
        optimizer.step()
        return loss.item()

    def peak() -> int:
        return torch.cuda.max_memory_allocated() if device == "cuda" else memory(True) - baseline

    measure(train, work, peak, parameters=sum(p.numel() for p in model.parameters()))


if __name__ == "__main__":
    main()
