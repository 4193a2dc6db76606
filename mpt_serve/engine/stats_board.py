"""The engine's counters on their way from its own thread to others."""

from functools import partial

from mpt_serve.engine.memory import CachePlan
from mpt_serve.engine.programs import CompilationCounter
from mpt_serve.engine.scheduler import Scheduler
from mpt_serve.engine.stats import DraftStats, EngineStats


class StatsBoard:
    """Publishes snapshots. The engine's thread alone writes and publishes; any thread may read `latest`.

    steps: steps scheduled so far. error: why the engine has stopped.
    """

    def __init__(
        self, scheduler: Scheduler, drafts: DraftStats, cache_plan: CachePlan, compilations: CompilationCounter
    ) -> None:
        self.steps = 0
        self.error: str | None = None
        self._scheduler = scheduler
        self._drafts = drafts
        self._cache_plan = cache_plan
        self._compilations = compilations
        self.publish()

    @property
    def latest(self) -> EngineStats:
        """Return the snapshot that was published last."""
        return self._latest()

    def publish(self) -> None:
        """Replace the latest snapshot by one of the present state: by its numbers, of which readers make a record."""
        scheduler, counters = self._scheduler, self._scheduler.counters
        self._latest = partial(
            EngineStats,
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            free_blocks=scheduler.pool.num_free,
            total_blocks=scheduler.pool.num_blocks,
            max_model_len=self._cache_plan.max_model_len,
            steps=self.steps,
            prompt_tokens=counters.prompt_tokens,
            cached_tokens=counters.cached_tokens,
            generated_tokens=counters.generated_tokens,
            drafted_tokens=self._drafts.drafted,
            accepted_tokens=self._drafts.accepted,
            preemptions=scheduler.num_preemptions,
            compilations=self._compilations.count,
            compile_seconds=self._compilations.seconds,
            without_numbers=counters.without_numbers,
            finished=dict(counters.finished),
            error=self.error,
            notes=self._cache_plan.notes,
        )
