"""The denoising steps that stay dense: counted by timesteps, whatever the scheduler and the loop."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import diffusers  # noqa: E402
from video_models import SMALL, make, run, wan  # noqa: E402

import tilewright.diffusers  # noqa: E402
from tilewright.diffusers.steps import Steps  # noqa: E402

FLOW_HEUN = diffusers.FlowMatchHeunDiscreteScheduler
FALLING = [999.0, 800.0, 600.0, 400.0]
RISING = [0.0, 20.0, 40.0, 980.0]


def skipped(calls, skip):
    """Which of the calls are in the first `skip` steps."""
    steps = Steps(skip)
    found = []
    for timestep in calls:
        steps.observe(timestep)
        found.append(steps.skipping)
    return found


def each(values, times):
    return [value for value in values for _ in range(times)]


@pytest.mark.parametrize("skip", [0, 1, 2, 3, 4, 9])
@pytest.mark.parametrize("passes", [1, 2, 3])  # of guidance, or of the videos of a batch that take turns
@pytest.mark.parametrize("run_of", [FALLING, RISING, FALLING[:2], RISING[:2], FALLING[:1]], ids=str)
def test_runs_one_after_another(run_of, passes, skip):
    calls = each(run_of, passes)
    expected = [step < skip for step in each(range(len(run_of)), passes)]
    runs = 3
    if len(run_of) == 1:  # runs of one step at one timestep look like passes of one run, and need not be told apart
        assert skipped(calls * runs, skip) == [skip > 0] * passes * runs
    else:
        assert skipped(calls * runs, skip) == expected * runs


@pytest.mark.parametrize("skip", [1, 2, 3])
@pytest.mark.parametrize(
    "scheduler, options",
    [
        (diffusers.FlowMatchEulerDiscreteScheduler, {}),
        (diffusers.FlowMatchEulerDiscreteScheduler, {"shift": 5.0}),
        (diffusers.FlowMatchEulerDiscreteScheduler, {"invert_sigmas": True}),  # rising
        (diffusers.UniPCMultistepScheduler, {}),
        (diffusers.UniPCMultistepScheduler, {"prediction_type": "flow_prediction", "use_flow_sigmas": True}),
        (diffusers.DPMSolverMultistepScheduler, {}),
        (diffusers.CogVideoXDDIMScheduler, {}),
        (diffusers.DDIMInverseScheduler, {}),  # rising
        (diffusers.DPMSolverMultistepInverseScheduler, {}),  # rising
        (FLOW_HEUN, {}),  # each timestep but the first is evaluated twice
        (diffusers.HeunDiscreteScheduler, {}),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_schedulers_of_diffusers(scheduler, options, skip):
    scheduler = scheduler(**options)
    scheduler.set_timesteps(8)
    timesteps = scheduler.timesteps.tolist()
    distinct = sorted(set(timesteps), reverse=timesteps[0] > timesteps[-1])
    assert len(distinct) == 8
    expected = [distinct.index(timestep) < skip for timestep in timesteps]
    calls = [t for t in scheduler.timesteps for _ in range(2)]  # guidance, in two passes
    assert skipped(calls * 2, skip) == [value for value in expected for _ in range(2)] * 2


@pytest.mark.parametrize(
    "calls",
    [
        [torch.tensor(t) for t in FALLING],
        [torch.full((3,), t) for t in FALLING],
        [int(t) for t in FALLING],
        [torch.tensor([[0.0, t, t / 2]]) for t in FALLING],  # per token: the given image's is 0
        [torch.tensor(t / 1000, dtype=torch.bfloat16) for t in FALLING],
    ],
    ids=["scalars", "per video", "numbers", "per token", "of 0 to 1"],
)
def test_forms_of_a_timestep(calls):
    assert skipped(calls * 2, 2) == [True, True, False, False] * 2


def test_a_tensor_that_is_written_over():
    """One tensor for all steps, changed in place."""
    timestep, steps, found = torch.zeros(()), Steps(2), []
    for value in FALLING * 2:
        timestep.fill_(value)
        steps.observe(timestep)
        found.append(steps.skipping)
    assert found == [True, True, False, False] * 2
    with torch.inference_mode():
        assert skipped([torch.tensor(t) for t in FALLING], 2) == [True, True, False, False]


def test_an_inversion_and_then_the_run():
    """Up and down again on one model: the run's first steps are dense."""
    up, down = [1.0, 250.0, 500.0, 750.0], [999.0, 700.0, 400.0, 100.0]
    assert skipped([*up, *down], 2)[:4] == [True, True, False, False]
    # 999 follows 750 as another step up would; from 700 on the run is known for one.
    assert skipped([*up, *down], 2)[5:] == [True, True, False]
    assert all(skipped([*down, *up], 2)[5:7])


def test_rising_timesteps_in_a_model(device):
    model, inputs = make(wan, device, grid=SMALL, num_layers=1)
    at = lambda timestep: {"timestep": torch.full((2,), timestep, device=device)}  # noqa: E731
    dense = {t: run(model, inputs, **at(t)) for t in RISING}
    with tilewright.diffusers.enable(model, top_k=0.1, top_p=None, min_tokens=64, skip_first_steps=2) as enabled:
        for _ in range(2):
            found = [torch.equal(run(model, inputs, **at(t)), dense[t]) for t in RISING]
            assert found == [True, True, False, False]
        assert enabled.report().sparse_calls == 4 and enabled.report().dense_calls == {"in skipped steps": 4}
