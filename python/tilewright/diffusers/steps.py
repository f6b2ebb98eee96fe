"""Counting the denoising steps of a run, by the timesteps the model is called with."""

from __future__ import annotations

import torch

from .identity import Seen
from .tracing import exporting, has_values


class Steps:
    """Which step of its run a model is in. One counter serves all transformers of a pipeline.

    A step is another timestep: guidance's two passes, the videos of a batch that take turns, and the two evaluations of a
    second-order solver share one. Timesteps fall throughout a run, or rise (inversion, inverted sigmas): the first one in the
    other direction is the first of another run. For `skip == 0` nothing is read, and the device is never waited for;
    otherwise it is once for each new timestep tensor.
    """

    def __init__(self, skip):
        self.skip = skip
        #: Whether this step is one of the first `skip`. Compiled blocks look at it, and not at the number of the step.
        self.skipping = skip > 0
        self._step = 0
        self._timestep = None
        self._rises = None  # not known before the run's second step
        self._seen = Seen(1)

    def observe(self, timestep):
        """Takes the timestep of a forward pass: a number or a tensor of any shape, whose highest value counts.

        Raises:
            ValueError: the model is being exported, with steps to skip.
        """
        if self.skip == 0 or timestep is None:
            return
        if exporting():
            raise ValueError(
                f"skip_first_steps is {self.skip}, and an exported program does not know its step: enable with "
                "skip_first_steps=0 before the export, or disable to export the dense model"
            )
        if not isinstance(timestep, torch.Tensor):
            timestep = torch.as_tensor(timestep)
        if not has_values(timestep):
            return
        value = self._seen.value(timestep, lambda tensor: float(tensor.max()))
        if self._timestep is None:
            pass
        elif value == self._timestep:
            return
        elif self._rises in (None, value > self._timestep):
            self._step += 1
            self._rises = value > self._timestep
        else:
            self._step, self._rises = 0, None
        self._timestep = value
        self.skipping = self._step < self.skip
