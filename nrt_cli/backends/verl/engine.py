"""The verl engine: what the local engine does, on Ray, FSDP and vLLM. Import it through `launch.py`."""

import math
import time
from collections.abc import Sequence

from nrt_cli.backends.local.engine import HELD_OUT_STREAM, TRAIN_STREAM, Update
from nrt_cli.backends.verl.cluster import Cluster
from nrt_cli.backends.verl.run import VerlRun
from nrt_cli.backends.verl.steps import Steps
from nrt_cli.config import RunConfig
from nrt_cli.objective.group import held_out_scores, mean_of
from nrt_cli.objective.metrics import step_metrics
from nrt_cli.records import Example, HeldOut, RolloutGroup


class VerlEngine(VerlRun):
    """A run of a method that samples traces.

    Args:
        updates: optimiser steps of the whole run, for the learning rate's schedule.
    """

    processes: Cluster

    def __init__(self, config: RunConfig, updates: int, processes: Cluster) -> None:
        super().__init__(config, processes)
        budget = self.settings.actor_rollout_ref.actor.ppo_max_token_len_per_gpu
        self.steps = Steps(config, updates, processes, self.tokens, budget)
        self.published: int | None = None
        """After how many updates the sampler's weights were taken."""

    @property
    def updated(self) -> int:
        """Optimiser steps taken."""
        return self.steps.updated

    @updated.setter
    def updated(self, updates: int) -> None:
        self.steps.updated = updates

    def train_step(self, examples: Sequence[Example], step: int) -> tuple[Update, list[RolloutGroup]]:
        """Sample and update; seconds of each phase and rates are among the metrics."""
        started, clock = time.perf_counter(), self.steps.clock
        clock.read()  # what held-out scores took is no part of a step
        self._publish()
        with clock("rollout"):
            groups = self.steps.sample(examples, self.config.rollout.group_size, (self.config.seed, TRAIN_STREAM, step))
        scores, reports = self.steps.update(groups)
        metrics = step_metrics(scores, len(reports)) | mean_of(reports)
        metrics["tokens"] = self.steps.layout.tokens_of(groups)
        seconds = time.perf_counter() - started
        return Update(metrics | self._rates(groups, metrics["tokens"], seconds), scores), groups

    def _publish(self) -> None:
        """The policy's weights to the sampler, if it has older ones or none."""
        if self.processes.asleep or self.published != self.updated:
            with self.steps.clock("weights"):
                self.processes.publish(self.updated)
            self.published = self.updated

    def _rates(self, groups: Sequence[RolloutGroup], tokens: float, seconds: float) -> dict[str, float]:
        """Seconds by phase and tokens a second."""
        phases = self.steps.clock.read()
        rates = {"seconds": seconds, "tokens_per_second": tokens / seconds}
        rates |= {f"seconds_{phase}": phases[phase] for phase in phases}
        rates["seconds_update"] = seconds - phases["rollout"]
        # The ranks' matmul rate is not measured from here.
        rates["mfu"] = math.nan
        sampled = sum(len(r.sampler_logprobs) for group in groups for r in group.rollouts)
        return rates | {"rollout_tokens_per_second": sampled / phases["rollout"]}

    def held_out(self, examples: Sequence[Example]) -> HeldOut:
        """log P(y*) of held-out examples, in nats, with one sampled and with the null trace.

        The traces come from the same random streams at every call, so two calls differ by the policy alone.
        """
        self._publish()
        groups = self.steps.sample(examples, 1, (self.config.seed, HELD_OUT_STREAM))
        return held_out_scores(groups, self.steps.layout, self.steps.score)
