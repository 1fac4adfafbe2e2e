"""LeRobot's own `lerobot-eval`, unmodified and as a process of its own, on our environments."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from simulators.maniskill import maniskill
from simulators.point import PointEnv
from vla.rollout import rollout
from vla.types import Action

ROOT = Path(__file__).parents[1]
POINT = {"image_size": 64, "max_steps": 8}
PUSH = {"image_size": 32, "drawing": "light", "max_steps": 3, "backend": "cpu"}
SEED = 200  # of these four episodes the random policy happens to solve two


@pytest.fixture(scope="module")
def act():
    """Saves a small ACT policy for an environment and returns it as an actor of ours."""
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy
    from lerobot.policies.factory import make_pre_post_processors

    def save(directory, env):
        spec, camera = env.spec, env.spec.cameras[0]
        inputs = {
            "observation.state": PolicyFeature(FeatureType.STATE, (spec.proprio_dim,)),
            f"observation.images.{camera.name}": PolicyFeature(FeatureType.VISUAL, (3, camera.height, camera.width)),
        }
        outputs = {"action": PolicyFeature(FeatureType.ACTION, (spec.action_dim,))}
        config = ACTConfig(
            input_features=inputs, output_features=outputs, device="cpu", pretrained_backbone_weights=None,
            chunk_size=1, n_action_steps=1, dim_model=16, n_heads=2, dim_feedforward=16, n_encoder_layers=1,
            n_vae_encoder_layers=1, latent_dim=4,
        )  # fmt: skip
        policy = ACTPolicy(config).eval()
        before, after = make_pre_post_processors(config, dataset_stats=statistics(inputs | outputs))
        for part in (policy, before, after):
            part.save_pretrained(directory)
        return Acting(policy, before, after)

    return save


def statistics(features):
    """Normalisation that is not the identity: it must be applied on the way in and undone on the way out."""
    shapes = {name: (3, 1, 1) if len(x.shape) == 3 else x.shape for name, x in features.items()}
    return {name: {"mean": torch.full(s, 0.03), "std": torch.full(s, 0.8)} for name, s in shapes.items()}


class Acting:
    """A LeRobot policy in our loop."""

    def __init__(self, policy, before, after):
        self.policy, self.before, self.after = policy, before, after

    def act(self, obs):
        self.policy.reset()
        pictures = {f"observation.images.{k}": v.permute(0, 3, 1, 2) / 255 for k, v in obs.images.items()}
        batch = {**pictures, "observation.state": obs.proprio, "task": list(obs.instruction)}
        action = self.after(self.policy.select_action(self.before(batch)))
        b = [len(action)]
        return Action(commands=action[:, None], log_prob=torch.zeros(*b, 0), latent=TensorDict({}, b), batch_size=b)


def evaluated(policy: Path, out: Path, task: str, options: dict, *more: str) -> dict:
    """What `lerobot-eval` wrote about four episodes, two at a time."""
    command = [
        Path(sys.executable).with_name("lerobot-eval"),
        "--env.discover_packages_path=vla.lerobot_env",
        "--env.type=armature",
        f"--env.task={task}",
        f"--env.options={json.dumps(options)}",
        f"--policy.path={policy}",
        "--policy.device=cpu",
        "--eval.n_episodes=4",
        "--eval.batch_size=2",
        f"--seed={SEED}",
        f"--output_dir={out}",
        *more,
    ]
    offline = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env={**os.environ, **offline}, cwd=out.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((out / "eval_info.json").read_text())


def assert_agrees(info, episodes):
    """Successes, and sums of rewards, are those of our own loop over the same episodes."""
    metrics = info["per_task"][0]["metrics"]
    successes = episodes.success.any(0).tolist()
    assert metrics["successes"] == successes
    np.testing.assert_allclose(metrics["sum_rewards"], episodes.reward.sum(0), rtol=1e-4, atol=1e-4)
    assert info["overall"]["pc_success"] == pytest.approx(100 * np.mean(successes))


@pytest.mark.timeout(300)
def test_lerobot_eval_counts_what_our_own_loop_counts(tmp_path, act):
    torch.manual_seed(0)
    actor = act(tmp_path / "policy", PointEnv(4, **POINT))
    info = evaluated(tmp_path / "policy", tmp_path / "out", "Point", POINT)
    episodes = rollout(PointEnv(4, **POINT), actor, seed=SEED)
    assert_agrees(info, episodes)
    assert 0 < episodes.success.any(0).sum() < 4
    assert len(list((tmp_path / "out").rglob("*.mp4"))) == 4


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_lerobot_eval_counts_what_our_own_loop_counts_on_maniskill(tmp_path, act):
    torch.manual_seed(0)
    env = maniskill("PushCube-v1", 4, **PUSH, reward="normalized_dense")
    actor = act(tmp_path / "policy", env)
    info = evaluated(
        tmp_path / "policy", tmp_path / "out", "ManiSkill-PushCube-v1", {**PUSH, "reward": "normalized_dense"}
    )
    assert_agrees(info, rollout(env, actor, seed=SEED))
    env.close()
