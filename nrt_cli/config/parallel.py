"""How a run is spread over processes, GPUs and nodes."""

from pydantic import Field

from nrt_cli.config.base import Section


class ParallelSection(Section):
    """Settings of the verl engine alone; none changes what a step computes, up to rounding."""

    nodes: int = Field(1, ge=1, description="Machines of the Ray cluster that train.")
    gpus_per_node: int = Field(1, ge=1, description="One rank each; without a GPU, that many ranks on the CPU.")
    tensor: int = Field(1, ge=1, description="GPUs that share one copy of the sampler's weights (vLLM).")
    sequence: int = Field(1, ge=1, description="GPUs that share one row of the update (Ulysses).")
    offload: bool = Field(False, description="Weights and moments wait in the CPU's memory between phases.")

    @property
    def ranks(self) -> int:
        """Processes that train, over all nodes."""
        return self.nodes * self.gpus_per_node
