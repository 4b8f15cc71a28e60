"""The loaded models: their engines, how they are reloaded, and the drift of the images that each one scores."""

import asyncio
import logging
from collections.abc import Callable, Mapping

from ddaebm.model.bundle import find_bundle, load_bundle
from ddaebm.model.engine import Engine, load_engine
from ddaebm.model.errors import ConfigError, DdaebmError
from ddaebm.model.ood.drift import Drift
from ddaebm.model.ood.levels import Explained, Scores
from ddaebm.model.parallel import usable_cores
from ddaebm.model.sessions import CPU, choose_providers
from ddaebm.service import memory
from ddaebm.service.http.errors import Problem
from ddaebm.service.metrics import Metrics
from ddaebm.service.settings import Settings

logger = logging.getLogger("ddaebm")

Engines = Mapping[str, Engine]  # by name; the first is the default


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


def load_engines(settings: Settings, loaded: Engines | None = None) -> Engines:
    """The engines that `settings` name, by the names of their bundles. Unchanged ones are taken from `loaded`.

    Raises:
        BundleError: a bundle cannot be loaded.
        ConfigError: a device or backend is not available, or two bundles have one name.
    """
    threads = plan_workers(settings)[1]
    engines: dict[str, Engine] = {}
    for source in settings.bundle:
        bundle = load_bundle(find_bundle(source))
        if bundle.name in engines:
            raise ConfigError(f"two bundles are named {bundle.name!r}; export or calibrate one with another --name")
        old = (loaded or {}).get(bundle.name)
        if old and old.digest == bundle.digest:
            engines[bundle.name] = old
        else:
            engines[bundle.name] = load_engine(
                bundle, settings.device, settings.backend, threads, settings.max_batch, settings.tensorrt_cache
            )
    return engines


class Registry:
    """The engines that answer requests. They are replaced all at once, so a request keeps the engine it began with.

    Args:
        load: returns the engines that the settings name, warm; reuses those passed to it that have not changed.
        on_change: called with the new engines, before they answer.
    """

    def __init__(self, load: Callable[[Engines], Engines], metrics: Metrics, on_change: Callable[[Engines], None]):
        self.load, self.metrics, self.on_change = load, metrics, on_change
        self.engines: Engines = {}
        self.drifts: dict[str, Drift] = {}  # by digest
        self._reloading = asyncio.Lock()
        self._reload_waits = False

    async def reload(self) -> None:
        """Load the bundles again and serve them once all are warm. If one cannot be loaded, the old ones stay.

        One reload runs at a time and one may wait. Others asked for meanwhile would find what the waiting one finds.
        """
        if self._reload_waits:
            return
        self._reload_waits = True
        async with self._reloading:
            self._reload_waits = False
            try:
                engines = await asyncio.to_thread(self.load, self.engines)
            except Exception as error:  # whatever is wrong with the new bundles, the old ones still work
                known = isinstance(error, DdaebmError | OSError)
                logger.error("reload failed, the old bundles stay: %s", error, exc_info=not known)
                self.metrics.reloads.labels("failed").inc()
                return
            self.serve(engines)
            await asyncio.to_thread(memory.give_back)  # or glibc would keep that of the threads that loaded bundles
            self.metrics.reloads.labels("ok").inc()

    def serve(self, engines: Engines) -> None:
        """Answer with `engines` from now on. A model that stays keeps its drift."""
        self.on_change(engines)
        self.engines = engines
        self.drifts = {
            engine.digest: self.drifts.get(engine.digest) or Drift(engine.scorer.calibration_scores)
            for engine in engines.values()
        }
        self.metrics.model_info.clear()
        self.metrics.drift.clear()
        self.metrics.drift_highest.clear()
        for engine in engines.values():
            self._show_drift(engine.name, self.drifts[engine.digest])
            self.metrics.model_info.labels(engine.name, engine.digest, engine.backend).set(1)
            logger.info("ready: %s %s on %s", engine.name, engine.digest[:12], engine.backend)

    def find(self, name: str | None) -> Engine:
        """The named engine, or the default one.

        Raises:
            Problem: 404, naming what is loaded.
        """
        if name is None:
            return next(iter(self.engines.values()))
        if name not in self.engines:
            raise Problem(404, "unknown-model", f"no model {name[:100]!r}; loaded: {', '.join(self.engines)}")
        return self.engines[name]

    def count_scores(self, engine: Engine, scores: Scores | Explained, alpha: float) -> None:
        """Count a client's scores in the metrics and in the drift of the engine's model."""
        for p in scores.p_value:
            self.metrics.scored.labels(engine.name, "ood" if p <= alpha else "in").inc()
            self.metrics.p_value.labels(engine.name).observe(p)
        if drift := self.drifts.get(engine.digest):  # none if a reload removed the model meanwhile
            drift.update(scores.ood_score)
            self._show_drift(engine.name, drift)

    def _show_drift(self, name: str, drift: Drift) -> None:
        self.metrics.drift.labels(name).set(drift.log_martingale)
        self.metrics.drift_highest.labels(name).set(drift.log_highest)
