"""Engines as the settings ask for them."""

from ddaebm.model import engine
from ddaebm.model.bundle import Bundle
from ddaebm.model.engine import Engine
from ddaebm.model.errors import ConfigError
from ddaebm.model.parallel import usable_cores
from ddaebm.model.runtime import CPU, choose_providers
from ddaebm.service.settings import Settings


def plan_workers(settings: Settings) -> tuple[int, int]:
    """(inferences at a time, threads of each).

    On a CPU, one single-threaded inference for each core (`model/parallel.py` says why).

    Raises:
        ConfigError: several are asked for where the backend runs one at a time.
    """
    if settings.backend == "torch":
        if settings.workers > 1:
            raise ConfigError(f"workers={settings.workers}: backend=torch runs one inference at a time")
        return 1, settings.threads
    cores = usable_cores()
    workers = settings.workers or (cores if choose_providers(settings.device)[0] == CPU else 1)
    return workers, settings.threads or max(1, cores // workers)


def load_engine(bundle: Bundle, settings: Settings) -> Engine:
    """The engine of `bundle` that `settings` ask for. Raises BundleError and ConfigError as `model.engine`."""
    threads = plan_workers(settings)[1]
    return engine.load_engine(
        bundle, settings.device, settings.backend, threads, settings.max_batch, settings.tensorrt_cache
    )
