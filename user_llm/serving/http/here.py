"""What every route is given: the service behind it, and what it may take."""

from dataclasses import dataclass, field
from typing import Annotated

from anyio import CapacityLimiter
from fastapi import Depends, Request

from user_llm.serving.http.border import Limits
from user_llm.serving.http.metrics import Metrics
from user_llm.serving.service import Service


@dataclass
class Serving:
    """A server's service, under its name."""

    service: Service
    name: str  # of the model
    began: int  # seconds
    limits: Limits
    metrics: Metrics
    # Threads of their own, for what is not to wait behind those in which a store does not answer:
    alone: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(8))  # without a user
    ready: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(1))  # whether it does


async def _here(request: Request) -> Serving:
    return request.app.state.serving


Here = Annotated[Serving, Depends(_here)]
