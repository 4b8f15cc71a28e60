"""Replaces an inference thread that died or hangs, once. The second time the service fails.

Decoder processes are replaced whenever that happens: what they read is made by clients.
"""

import asyncio
import logging

from ddaebm.service.state import Service

logger = logging.getLogger("ddaebm")

_EVERY = 0.25  # seconds between checks


async def watch(service: Service) -> None:
    """Watch until the service drains or fails. Setting `runner.failed` makes the server exit with 1."""
    restarted = False
    while not service.runner.draining:
        await asyncio.sleep(_EVERY)
        service.runner.decoders.tend()
        fault = _fault(service)
        if fault is None or service.runner.draining:
            continue
        if restarted:
            logger.critical("%s again; restart the service", fault)
            service.runner.failed = True
            await asyncio.to_thread(service.runner.batcher.close, 0)  # fails the queued requests
            return
        logger.error("%s; starting another one, only once", fault)
        service.runner.batcher.restart(service.settings.hang_seconds)
        service.metrics.inference_restarts.inc()
        restarted = True


def _fault(service: Service) -> str | None:
    if not service.runner.batcher.alive:
        return "an inference thread died"
    limit = service.settings.hang_seconds
    if service.runner.batcher.busy_seconds > limit:
        return f"an inference thread hangs: one inference is over {limit:g} s"
    return None
