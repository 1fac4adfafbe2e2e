"""What every test starts from: one thread, one seed, no deadline for hypothesis."""

import os
import shutil

import hypothesis
import pytest
import torch

os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # a call that comes too late is an error and starts no Ray of its own

import simulators  # noqa: F401 - before MuJoCo, which it has draw without a screen

hypothesis.settings.register_profile("torch", deadline=None)  # the first call into torch takes seconds
hypothesis.settings.load_profile("torch")
torch.set_num_threads(1)  # also for fixtures of a whole file: a process that has used several cannot be forked safely


# They wait for other processes, by the clock: on a machine that was held up, a test that failed is tried again.
BY_THE_CLOCK = "calibrate cameras env_contract franka gello lerobot_robot protocol remote review runner serving"
BY_THE_CLOCK += " spacemouse teleop twin"
LONGEST = ("test_serving.py", "test_recipes.py")  # they begin first, or the rest would wait for them


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem.removeprefix("test_") in BY_THE_CLOCK.split():
            item.add_marker(pytest.mark.flaky(reruns=2, reruns_delay=3))
    items.sort(key=lambda x: LONGEST.index(x.path.name) if x.path.name in LONGEST else len(LONGEST))


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(autouse=True)
def start_alike():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    assert os.sched_getscheduler(0) == os.SCHED_OTHER, "it left this process before all others"
