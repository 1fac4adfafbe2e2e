"""Our environments as gymnasium and Stable-Baselines3 see them; both libraries are the references here."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from simulators.batch import SceneBatch
from simulators.point import PointEnv
from vla.gymnasium import Batch, Single, command_limits, ids
from vla.types import ChunkEnv, Command

PUSH = {"image_size": 16, "drawing": "light", "max_steps": 6, "backend": "cpu"}


# Elsewhere gymnasium's warnings are ignored because of the simulators; here they say what its checker found.
STRICT = pytest.mark.filterwarnings("error:::gymnasium.*")


@STRICT
@pytest.mark.parametrize("options", [{}, {"observation": "state"}, {"normalise": False}], ids=str)
def test_gymnasiums_checker_finds_nothing_on_point(options):
    check_env(gymnasium.make("armature/Point", **options).unwrapped)


@pytest.mark.slow
@STRICT
@pytest.mark.parametrize("options", [{}, {"observation": "state", "images": False}], ids=str)
def test_gymnasiums_checker_finds_nothing_on_maniskill(options):
    check_env(gymnasium.make("armature/ManiSkill-PushCube-v1", **PUSH, **options).unwrapped)


def test_every_task_that_is_listed_has_an_id_and_so_has_every_configuration():
    assert {"armature/Point", "armature/ManiSkill", "armature/ManiSkill-PushCube-v1"} <= ids().keys()
    assert ids()["armature/ManiSkill-StackCube-v1"] == {"config": "maniskill", "task": "StackCube-v1"}
    assert ids().keys() <= gymnasium.registry.keys()


def test_a_module_and_an_id_need_no_import_before():
    env = gymnasium.make("vla.gymnasium:armature/Point", max_steps=3)
    assert env.unwrapped.batch.env.spec.max_steps == 3


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"colour": "red"}, TypeError, "unexpected keyword argument 'colour'"),
        ({"num_targets": 3}, ValueError, "num_targets must be from 1 to 2, got 3"),
        ({"observation": "pictures"}, ValueError, "must be all or state, got 'pictures'"),
        ({"render_mode": "human"}, ValueError, "render_mode must be rgb_array or None, got 'human'"),
    ],
)
def test_what_an_environment_does_not_know_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        gymnasium.make("armature/Point", **options)


def test_an_action_of_one_is_the_limit_of_the_command_in_its_units():
    low, high = command_limits(Command("ee_delta", 7, 0.05, 0.2))
    np.testing.assert_allclose(high, [0.05] * 3 + [0.2] * 3 + [1])
    np.testing.assert_allclose(low, [-0.05] * 3 + [-0.2] * 3 + [0])
    assert command_limits(Command("joint_delta", 8, max_rotation=0.1))[0].tolist() == pytest.approx([-0.1] * 7 + [0])
    assert command_limits(Command("joint_position", 8))[1].tolist() == pytest.approx([2 * np.pi] * 7 + [1])
    with pytest.raises(ValueError, match="has no limits"):
        command_limits(Command("ee_delta", 7, 0.05))


class Recorder(PointEnv):
    """Remembers the commands as the environment was given them, with a gripper and a rotation in them."""

    def __init__(self):
        super().__init__(num_envs=1)
        self.given = []
        self.spec = self.spec.from_dict({**self.spec.to_dict(), "command": vars(Command("ee_delta", 7, 0.05, 0.2))})

    def step(self, command):
        self.given.append(command[0])
        return super().step(command[:, :2])


@pytest.mark.parametrize(
    ("normalise", "action", "command"),
    [
        (True, [1, -1, 0.5, 0, 0.25, -1, -1], [0.05, -0.05, 0.025, 0, 0.05, -0.2, 0]),
        (True, [0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0.5]),
        (True, [0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 1]),
        (False, [0.01, 0, 0, 0, 0.1, 0, 0.75], [0.01, 0, 0, 0, 0.1, 0, 0.75]),
    ],
)
def test_actions_reach_the_environment_in_its_units(normalise, action, command):
    recorder = Recorder()
    env = Single(recorder, normalise=normalise)
    env.reset(seed=0)
    env.step(np.array(action, dtype=np.float32))
    torch.testing.assert_close(recorder.given[0], torch.tensor(command, dtype=torch.float32), rtol=0, atol=1e-8)


@pytest.mark.parametrize("action", [[0.0, float("nan")], [0.0], [[0.0, 0.0]]], ids=str)
def test_an_action_that_is_none_is_refused(action):
    env = gymnasium.make("armature/Point").unwrapped
    env.reset(seed=0)
    with pytest.raises(ValueError, match="actions must be finite and of shape"):
        env.step(np.array(action))


def test_it_shows_what_our_environment_shows():
    ours, env = PointEnv(num_envs=1, num_targets=2), gymnasium.make("armature/Point", num_targets=2)
    seen, info = env.reset(seed=4)
    obs = ours.reset(4)
    np.testing.assert_array_equal(seen["top"], obs.images["top"][0])
    np.testing.assert_array_equal(seen["proprio"], obs.proprio[0])
    assert (info["instruction"], info["seed"], info["is_success"]) == (obs.instruction[0], 4, False)
    step = ours.step(torch.tensor([[0.1, -0.2]]))
    seen, reward, *_ = env.step(np.array([0.5, -1], dtype=np.float32))
    np.testing.assert_array_equal(seen["proprio"], step.obs.proprio[0])
    assert reward == pytest.approx(step.reward.item())


def test_without_a_seed_the_next_episodes_are_played_that_were_not_yet():
    env = gymnasium.make("armature/Point")
    assert [env.reset()[1]["seed"] for _ in range(3)] == [0, 1, 2]
    assert [env.reset(seed=50)[1]["seed"], env.reset()[1]["seed"]] == [50, 51]
    batch = gymnasium.make_vec("armature/Point", num_envs=3)
    assert batch.reset(seed=7)[1]["seed"].tolist() == [7, 8, 9]
    assert batch.reset()[1]["seed"].tolist() == [10, 11, 12]
    assert batch.reset(seed=[7, 8, 9])[1]["seed"].tolist() == [7, 8, 9]
    with pytest.raises(ValueError, match="follow each other"):
        batch.reset(seed=[7, 9, 8])


def towards_the_target(proprio):
    return ((proprio[:, 2:4] - proprio[:, :2]) / 0.2).clip(-1, 1).astype(np.float32)


BATCHES = {
    "point": lambda n, steps: PointEnv(n, max_steps=steps),
    "scenes": lambda n, steps: SceneBatch(lambda: PointEnv(1, max_steps=steps), n),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_after_an_end_the_next_step_begins_the_next_episode_while_the_others_go_on(kind):
    """Checked against gymnasium's own vectorisation of single copies, told to play the same episodes."""
    batch = Batch(BATCHES[kind](3, 7))
    singles = SyncVectorEnv([lambda: Single(PointEnv(1, max_steps=7))] * 3)
    seen, info = batch.reset(seed=20)
    expected, _ = singles.reset(seed=20)
    unused, ended, begun = 23, np.zeros(3, dtype=bool), []
    for _ in range(40):
        action = towards_the_target(seen["proprio"]) * np.array([[1], [0.3], [0.9]], dtype=np.float32)
        for i in ended.nonzero()[0]:  # a single copy is seeded by telling it which episode is the next one unused
            singles.envs[i].batch.unused = unused
            begun.append(unused)
            unused += 1
        seen, *outcome, info = batch.step(action)
        expected, *expected_outcome, expected_info = singles.step(action)
        assert {x: (y.dtype, y.shape) for x, y in seen.items()} == {x: (y.dtype, y.shape) for x, y in expected.items()}
        for name in seen:
            np.testing.assert_array_equal(seen[name], expected[name])
        for ours, theirs in zip(outcome, expected_outcome, strict=True):
            np.testing.assert_allclose(ours, theirs)
            assert ours.dtype == theirs.dtype
        assert info.keys() == expected_info.keys()
        for name in info:
            np.testing.assert_array_equal(info[name], expected_info[name])
        assert seen in batch.observation_space
        ended = outcome[1] | outcome[2]
    assert begun == list(range(23, unused))
    assert unused > 30


def test_gymnasiums_statistics_of_a_batch_are_those_of_its_episodes():
    env = RecordEpisodeStatistics(gymnasium.make_vec("armature/Point", num_envs=2, max_steps=5, observation="state"))
    env.reset(seed=0)
    total = np.zeros(2)
    for _ in range(5):
        *_, reward, _, truncated, info = env.step(np.zeros((2, 2), dtype=np.float32))
        total += reward
    assert truncated.all()
    assert info["episode"]["l"].tolist() == [5, 5]
    np.testing.assert_allclose(info["episode"]["r"], total, rtol=1e-6)


def test_the_mode_of_restarting_is_declared_and_one_that_cannot_be_is_refused():
    assert gymnasium.make_vec("armature/Point").metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP

    class Together:
        """What the GPU can do: all copies in one batch."""

        def __init__(self):
            inner = PointEnv(2)
            self.spec, self.reset, self.step, self.close = inner.spec, inner.reset, inner.step, inner.close

    with pytest.raises(ValueError, match="can only begin together: give autoreset_mode='Disabled'"):
        Batch(Together())
    batch = Batch(Together(), autoreset_mode="Disabled")
    assert batch.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    batch.reset(seed=0)
    for t in range(18):
        _, reward, _, truncated, info = batch.step(np.zeros((2, 2), dtype=np.float32))
        assert truncated.tolist() == [t == 15] * 2
        assert (reward < 0).tolist() == [t <= 15] * 2  # LeRobot sums one step more than an episode has
    assert info["seed"].tolist() == [0, 1]
    with pytest.raises(ValueError, match="not SameStep"):
        Batch(PointEnv(2), autoreset_mode="SameStep")


def test_rendering_is_what_the_first_camera_sees():
    env = gymnasium.make_vec("armature/Point", num_envs=2, render_mode="rgb_array")
    seen, _ = env.reset(seed=1)
    np.testing.assert_array_equal(np.stack(env.render()), seen["top"])


def test_stable_baselines_ppo_learns_point_from_state():
    from stable_baselines3 import PPO

    env = gymnasium.make("armature/Point", observation="state")
    model = PPO("MlpPolicy", env, n_steps=256, batch_size=64, learning_rate=1e-3, gamma=0.9, seed=0, device="cpu")

    def played(decide):
        returns, successes = [], []
        for seed in range(10_000, 10_030):
            seen, _ = env.reset(seed=seed)
            total, over = 0.0, False
            while not over:
                seen, reward, terminated, truncated, info = env.step(decide(seen))
                total, over = total + reward, terminated or truncated
            returns.append(total)
            successes.append(info["is_success"])
        return np.mean(returns), np.mean(successes)

    env.action_space.seed(0)
    random_return, random_success = played(lambda seen: env.action_space.sample())
    model.learn(2048)
    learned_return, learned_success = played(lambda seen: model.predict(seen, deterministic=True)[0])
    assert learned_return > random_return / 2
    assert learned_success > random_success + 0.3


def test_stable_baselines_takes_pictures_and_state_together():
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_checker import check_env as check_for_baselines

    env = gymnasium.make("armature/Point", image_size=36)
    check_for_baselines(env)
    PPO("MultiInputPolicy", env, n_steps=16, batch_size=16, n_epochs=1, seed=0, device="cpu").learn(32)


@pytest.mark.slow
def test_stable_baselines_ppo_runs_on_maniskill():
    from stable_baselines3 import PPO

    env = gymnasium.make("armature/ManiSkill-PushCube-v1", observation="state", images=False, reward="normalized_dense")
    model = PPO("MlpPolicy", env, n_steps=128, batch_size=64, seed=0, device="cpu")
    model.learn(384)
    assert len(model.ep_info_buffer) >= 384 // 50
    env.close()
    assert isinstance(env.unwrapped.batch.env, ChunkEnv)
