"""Demonstrations of robosuite's and LIBERO's own making, played again with our commands."""

import json

import h5py
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from scenes import assets, scene

from policies.scripted import ScriptedExpert
from simulators.mujoco_poses import rotate
from vla.program import CONFIGS
from vla.recipes.import_demonstrations import import_demonstrations

SOURCES = {
    "robomimic": ("robosuite", "Lift", "Lift"),
    "libero": ("libero", "libero_object:1", "LIBERO"),
}


def native_demonstration(env, expert, seed: int, steps: int):
    """States before and actions of an episode in the simulator's own loop, by its own controller.

    The expert aims from where the tool is, as that controller does.
    """
    env.reset(seed)
    raw, states, actions, done = env.env, [], [], False
    model = raw.model.get_xml()
    while not done and len(actions) < steps:
        env.arm.commanded = env.arm.measured()
        command = expert.act(env._observe()).commands[0, 0]
        world = rotate(env.arm.base[3:], command[:3].double().numpy()), command[3:6]
        action = np.concatenate([world[0] / 0.05, world[1] / 0.5, [1 - 2 * command[6]]]).clip(-1, 1)
        states.append(raw.sim.get_state().flatten())
        actions.append(action)
        raw.step(action)
        raw.sim.forward()
        done = bool(raw._check_success())
    return np.array(states), np.array(actions), done, model


def write(path, kind: str, env, episodes) -> None:
    """The layout of robomimic, or of LIBERO's published files."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        kwargs = {"controller_configs": env.arm.robot.controller_config}
        plain = json.loads(json.dumps(kwargs, default=lambda x: x.tolist() if hasattr(x, "tolist") else str(x)))
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": plain})
        if kind == "libero":
            data.attrs["problem_info"] = json.dumps({"language_instruction": env.start.instruction})
        for i, (states, actions, done, model) in enumerate(episodes):
            group = data.create_group(f"demo_{i}")
            group.attrs["model_file"] = model
            group["states"], group["actions"] = states, actions
            last = np.zeros(len(actions))
            last[-1] = done
            group["rewards" if kind == "robomimic" else "dones"] = (
                last if kind == "robomimic" else last.astype(np.uint8)
            )


@pytest.mark.parametrize("kind", SOURCES)
def test_a_recording_of_the_simulators_own_controller_succeeds_again(kind, tmp_path):
    simulator, task, plan = SOURCES[kind]
    env = scene(simulator, task, images=False, max_steps=100_000, ends_on_success=False)
    expert = ScriptedExpert(plan)
    episodes = [native_demonstration(env, expert, seed, steps=200) for seed in (3, 4)]
    assert all(done for _, _, done, _ in episodes)
    write(tmp_path / "demo.hdf5", kind, env, episodes)
    env.close()
    where = [
        f"env={simulator}",
        "env.num_envs=1",
        "++env.images=false",
        "++env.max_translation=1.0",
        "++env.max_rotation=3.0",
    ]
    if simulator == "libero":
        where += ["env.suite=libero_object", "++env.task=1", f"++env.assets={assets()}"]
    said = [f"source={tmp_path / 'demo.hdf5'}", f"out={tmp_path / 'out'}", f"run_dir={tmp_path / 'run'}"]
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        figures = import_demonstrations(compose("import_demonstrations", [*where, *said]))
    assert figures["replay"]["k"] == figures["source"]["k"] == 2
    assert figures["commands_changed_by_limits"] == 0


def test_the_arm_follows_a_recording_of_its_own_controller_exactly():
    """More than a second, until the cube is touched: the recorded states come again."""
    env = scene("robosuite", "Lift", images=False, max_translation=1.0, max_rotation=3.0, max_steps=1000)
    states, actions, _, model = native_demonstration(env, ScriptedExpert("Lift"), 3, steps=22)
    env.restore({"state": states[0], "model": model})
    for t, action in enumerate(actions):
        now = env.env.sim.get_state().flatten()
        np.testing.assert_allclose(now[1:], states[t][1:], atol=1e-5)
        env.step(env.translate(torch.from_numpy(action[None]).float(), "OSC_POSE", {}))
    env.close()


def test_actions_of_another_controller_are_refused():
    env = scene("robosuite", "Lift", images=False)
    env.reset(0)
    with pytest.raises(ValueError, match="only actions of OSC_POSE"):
        env.translate(torch.zeros(1, 7), "JOINT_VELOCITY", {})
    with pytest.raises(ValueError, match="output_max"):
        env.translate(torch.zeros(1, 7), "OSC_POSE", {"output_max": [0.1] * 6})
    env.close()
