"""What every test starts from: one thread, one seed, no deadline for hypothesis."""

import os

import hypothesis
import pytest
import torch

os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # a call that comes too late is an error and starts no Ray of its own

import simulators  # noqa: F401 - before MuJoCo, which it has draw without a screen

hypothesis.settings.register_profile("torch", deadline=None)  # the first call into torch takes seconds
hypothesis.settings.load_profile("torch")
torch.set_num_threads(1)  # also for fixtures of a whole file: a process that has used several cannot be forked safely


@pytest.fixture(autouse=True)
def start_alike():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    assert os.sched_getscheduler(0) == os.SCHED_OTHER, "it left this process before all others"
