"""Counting the denoising steps of a run, by the timesteps the model is called with."""

from __future__ import annotations

from .identity import Seen


class Steps:
    """Which step of its run a model is in. One counter serves all transformers of a pipeline.

    Timesteps fall from step to step, whatever the scheduler, and the two passes of guidance share one: a lower timestep is the next step,
    a higher one the first step of another run. For `skip == 0` nothing is read, and the device is never waited for; otherwise it is once
    for each new timestep tensor.
    """

    def __init__(self, skip):
        self.skip = skip
        self._step = 0
        self._timestep = None
        self._seen = Seen(1)

    def observe(self, timestep):
        """Takes the timestep of a forward pass: a number or a tensor of any shape (of per-token timesteps the highest counts)."""
        if self.skip == 0 or timestep is None:
            return
        value = self._seen.value(timestep, lambda tensor: float(tensor.max())) if hasattr(timestep, "max") else float(timestep)
        if self._timestep is None or value > self._timestep:
            self._step = 0
        elif value < self._timestep:
            self._step += 1
        self._timestep = value

    @property
    def skipping(self):
        """Whether this step is one of the first `skip`."""
        return self._step < self.skip
