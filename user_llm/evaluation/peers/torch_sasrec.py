"""SASRec (arXiv 1808.09781) in PyTorch, by hand: the peer of the encoder's training speed.

Timelines are padded to the window, as is usual, but the loss leaves padding out. States and items
are compared by cosine similarity over a temperature (arXiv 2402.17152), as on our side.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torch._dynamo  # the first step of an optimizer would import it
from torch import nn
from torch.nn import functional as F

from user_llm.evaluation.peers.work import Work, asked, measure, memory, timelines


class Block(nn.Module):
    """Attention of normed queries to plain keys and values, then a network of two layers."""

    def __init__(self, work: Work):
        super().__init__()
        size, self.heads = work.embed, work.heads
        self.q_proj, self.kv_proj = nn.Linear(size, size), nn.Linear(size, 2 * size)
        self.o_proj = nn.Linear(size, size)
        self.up_proj, self.down_proj = nn.Linear(size, size), nn.Linear(size, size)
        self.dropout = nn.Dropout(work.dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, T, D]
        normed = F.layer_norm(x, x.shape[-1:])
        projected = self.q_proj(normed), *self.kv_proj(x).chunk(2, -1)
        q, k, v = (h.unflatten(-1, (self.heads, -1)).transpose(1, 2) for h in projected)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = F.layer_norm(normed + self.dropout(self.o_proj(y)), x.shape[-1:])
        return x + self.dropout(self.down_proj(self.dropout(F.relu(self.up_proj(x)))))


class SASRec(nn.Module):
    """Items [B, T] to unit states [B, T, D]; item 0 is padding, and stands behind the others."""

    def __init__(self, work: Work):
        super().__init__()
        self.items = nn.Embedding(work.catalog + 1, work.embed, padding_idx=0)
        self.positions = nn.Embedding(work.window, work.embed)
        nn.init.normal_(self.items.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(work) for _ in range(work.blocks))
        self.dropout = nn.Dropout(work.dropout)

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        there = (items > 0).unsqueeze(-1)
        x = self.items(items) * self.items.embedding_dim**0.5
        x = self.dropout(x + self.positions.weight[: items.shape[1]]) * there
        for block in self.blocks:
            x = block(x) * there
        return F.normalize(x, dim=-1)


def loss(model: SASRec, rows: torch.Tensor, work: Work) -> tuple[torch.Tensor, int]:
    """The mean loss of telling each event but the first from those before, and of how many."""
    states, targets = model(rows[:, :-1]), rows[:, 1:]
    there = targets > 0
    states, targets = states[there], targets[there] - 1
    table = F.normalize(model.items.weight[1:], dim=-1) / work.temperature
    if work.loss == "softmax":
        return F.cross_entropy(states @ table.T, targets), len(targets)
    own = (states * table[targets]).sum(-1, keepdim=True)
    drawn = torch.randint(work.catalog, (len(targets), work.negatives))
    others = torch.bmm(F.embedding(drawn, table), states.unsqueeze(-1)).squeeze(-1)
    others = others.masked_fill(drawn == targets[:, None], -torch.inf)
    logits = torch.cat([own, others], dim=1)
    return F.cross_entropy(logits, torch.zeros_like(targets)), len(targets)


def padded(items: np.ndarray, offsets: np.ndarray, window: int) -> torch.Tensor:
    """Every timeline as a row [U, T] of items from 1 on, 0 behind them."""
    rows = np.zeros((len(offsets) - 1, window), np.int64)
    for row, start, stop in zip(rows, offsets[:-1], offsets[1:], strict=True):
        row[: stop - start] = items[start:stop] + 1
    return torch.from_numpy(rows)


def batches(rows: torch.Tensor, size: int) -> Iterator[torch.Tensor]:
    """Each row once an epoch, in random order, without end."""
    while True:
        yield from rows[torch.randperm(len(rows))].split(size)


def main() -> None:
    baseline, work = memory(), asked()
    torch.set_num_threads(work.threads)
    torch.manual_seed(0)
    rows = padded(*timelines(work), work.window)
    model, given = SASRec(work), batches(rows, work.users)
    optimizer = torch.optim.AdamW(
        model.parameters(), work.learning_rate, betas=(0.9, 0.98), weight_decay=0.0
    )

    def train(steps: int) -> tuple[int, float]:
        targets, value = 0, torch.zeros(())
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            value, count = loss(model, next(given), work)
            value.backward()
            optimizer.step()
            targets += count
        return targets, value.item()

    measure(
        train,
        work,
        baseline,
        targets_per_epoch=int((rows[:, 1:] > 0).sum()),
        parameters=sum(p.numel() for p in model.parameters()),
        block_parameters=sum(p.numel() for p in model.blocks[0].parameters()),
    )


if __name__ == "__main__":
    main()
