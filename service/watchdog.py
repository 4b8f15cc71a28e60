"""Notices an inference thread that died or hangs: starts another one, once; the next time the service has failed."""

import asyncio
import logging

from ddaebm.service.state import Service

logger = logging.getLogger("ddaebm")

_EVERY = 0.25  # seconds between two looks


async def watch(service: Service) -> None:
    """Until the service drains or fails. `runner.failed` makes `service.server` end the process with 1."""
    restarted = False
    while not service.runner.draining:
        await asyncio.sleep(_EVERY)
        fault = _fault(service)
        if fault is None or service.runner.draining:
            continue
        if restarted:
            logger.critical("%s again; restart the service", fault)
            service.runner.failed = True
            await asyncio.to_thread(service.runner.batcher.close, 0)  # those who wait are told
            return
        logger.error("%s; starting another one, this once", fault)
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
