"""What every test starts from: one thread, one seed, no deadline for hypothesis."""

import hypothesis
import pytest
import torch

import simulators  # noqa: F401 - before MuJoCo, which it has draw without a screen

hypothesis.settings.register_profile("torch", deadline=None)  # the first call into torch takes seconds
hypothesis.settings.load_profile("torch")
torch.set_num_threads(1)  # also for fixtures of a whole file: a process that has used several cannot be forked safely


@pytest.fixture(autouse=True)
def start_alike():
    torch.set_num_threads(1)
    torch.manual_seed(0)
