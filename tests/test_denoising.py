"""Diffusion and flow heads: their steps against closed forms and diffusers' own, and what a chain may change."""

import math
from functools import partial

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from policies.diffusion import DiffusionPolicy
from policies.flow import FlowPolicy
from simulators.point import PointEnv
from vla.algorithms.one_step import OneStep
from vla.data.chunks import ChunkBatch
from vla.data.normalise import Statistics
from vla.models.denoisers import TransformerDenoiser, UNet1D
from vla.models.state_mlp import StateMLP
from vla.types import Observation

H, A, WIDTH = 4, 2, 64
SPEC = PointEnv().spec
Flow = partial(FlowPolicy, SPEC, StateMLP, H)
Diffusion = partial(DiffusionPolicy, SPEC, StateMLP, H)
DENOISERS = {"unet": UNet1D, "transformer": TransformerDenoiser}


def knows(policy, answer):
    """The policy, with a denoiser that answers `answer(noisy, time)`."""
    policy.denoiser.forward = lambda noisy, time, features: answer(noisy, time[:, None, None])
    return policy


def features(rows: int) -> torch.Tensor:
    return torch.zeros(rows, WIDTH)


def at(index: int, rows: int) -> torch.Tensor:
    return torch.full((rows,), index)


# ---- denoisers


@pytest.mark.parametrize("denoiser", DENOISERS.values(), ids=DENOISERS)
@pytest.mark.parametrize("horizon", [1, 2, 3, 5, 8])
def test_a_denoiser_answers_for_any_horizon_and_listens_to_time_and_features(denoiser, horizon):
    net = denoiser(WIDTH, A, horizon)
    noisy, time, told = torch.randn(3, horizon, A), torch.rand(3), torch.randn(3, WIDTH)
    answer = net(noisy, time, told)
    assert answer.shape == noisy.shape
    for other in ((noisy + 0.1, time, told), (noisy, time / 2, told), (noisy, time, told + 0.1)):
        assert ((net(*other) - answer).abs().amax((1, 2)) > 1e-5).all()


def test_a_command_of_the_transformer_knows_those_before_it_only():
    net = TransformerDenoiser(WIDTH, A, H)
    noisy, time, told = torch.randn(1, H, A), torch.rand(1), torch.randn(1, WIDTH)
    other = noisy.clone()
    other[:, 2] += 1
    change = (net(noisy, time, told) - net(other, time, told)).abs().amax((0, 2))
    assert (change[:2] < 1e-6).all()
    assert (change[2:] > 1e-4).all()


# ---- flow


def test_one_step_along_the_true_velocity_is_the_chunk():
    noise, chunk = torch.randn(6, H, A), torch.rand(6, H, A)
    policy = knows(Flow(steps=1), lambda noisy, time: noise - chunk)
    torch.testing.assert_close(policy.fixed_step(features(6), noise, at(0, 6)), chunk)


@pytest.mark.parametrize("chain", ["sde", "noise"])
def test_a_draw_is_around_the_step_without_chance(chain):
    """With little noise the distribution of a step is narrow, and where the velocity leads."""
    policy = Flow(steps=5, chain=chain, noise=1e-4, spread=(1e-5, 2e-5))
    noisy = torch.randn(7, H, A)
    for i in range(5):
        step = policy.drawn_step(features(7), noisy, at(i, 7))
        torch.testing.assert_close(step.mean, policy.fixed_step(features(7), noisy, at(i, 7)), atol=1e-5, rtol=0)
        assert (step.stddev < 3e-4).all()


def test_the_sde_step_is_the_one_of_the_paper():
    """K = 4 steps, a = 0.5, third step: t = 0.5, sigma = 0.5, std = 0.25, and the mean worked out on paper."""
    policy = knows(Flow(steps=4, chain="sde", noise=0.5), lambda noisy, time: torch.full_like(noisy, 0.8))
    step = policy.drawn_step(features(1), torch.full((1, H, A), 0.3), at(2, 1))
    chunk, noise = 0.3 - 0.8 * 0.5, 0.3 + 0.8 * 0.5
    assert step.stddev[0, 0, 0].item() == pytest.approx(0.25)
    assert step.mean[0, 0, 0].item() == pytest.approx(chunk * 0.75 + noise * (0.25 - 0.25 * 0.25 / (2 * 0.5)))


@pytest.mark.parametrize(("chain", "drawn"), [("ode", 0), ("sde", 1), ("sde", 100)])
def test_steps_of_the_sde_keep_the_marginals(chain, drawn):
    """Chunks of mean 0.4 and standard deviation 0.3 have a velocity in closed form; 100 steps reach them."""
    mean, std, steps = 0.4, 0.3, 100

    def velocity(noisy, time):
        variance = (1 - time) ** 2 * std**2 + time**2
        return (noisy - (1 - time) * mean) * (time - (1 - time) * std**2) / variance - mean

    policy = knows(Flow(steps=steps, chain=chain), velocity)
    states = torch.randn(20_000, 1, 1)
    first = torch.randint(steps - max(drawn, 1) + 1, (1,)).item()
    for i in range(steps):
        if first <= i < first + drawn:
            states = policy.drawn_step(features(20_000), states, at(i, 20_000)).sample()
        else:
            states = policy.fixed_step(features(20_000), states, at(i, 20_000))
    assert states.mean().item() == pytest.approx(mean, abs=0.012)
    assert states.std().item() == pytest.approx(std, rel=0.03)


def test_learned_noise_stays_within_its_spread_and_depends_on_the_step():
    policy = Flow(steps=4, chain="noise", spread=(0.08, 0.16))
    with torch.no_grad():
        for p in policy.loudness.parameters():
            p.mul_(4)
    told = torch.randn(50, WIDTH)
    stds = torch.stack([policy.drawn_step(told, torch.randn(50, H, A), at(i, 50)).stddev for i in range(4)])
    assert stds.min() >= 0.08 - 1e-6
    assert stds.max() <= 0.16 + 1e-6
    assert stds.std(0).max() > 1e-3
    assert stds.max() - stds.min() > 0.04


def test_every_step_of_an_sde_is_drawn_as_often_as_any_other():
    first = Flow(steps=4, chain="sde").first_drawn(3000)
    assert (torch.bincount(first, minlength=4) / 3000 - 0.25).abs().max() < 0.03


@pytest.mark.parametrize("policy", [Flow(steps=3, chain="noise"), Diffusion(steps=3, levels=9, eta=1.0)])
def test_a_decision_asks_the_denoiser_once_per_step(policy):
    asked = []
    policy.denoiser.register_forward_hook(lambda *_: asked.append(1))
    policy.act(PointEnv(num_envs=2).reset(0))
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"chain": "ddpm"}, "chain must be one of ode, sde, noise, got 'ddpm'"),
        ({"chain": "sde", "steps": 1}, "at least 2 steps, got 1"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"chain": "noise", "spread": (0.2, 0.1)}, r"spread must be .*, got \(0.2, 0.1\)"),
    ],
)
def test_a_flow_refuses_what_cannot_be(wrong, message):
    with pytest.raises(ValueError, match=message):
        Flow(**wrong)


# ---- diffusion


def test_all_levels_with_chance_are_ddpm():
    policy = knows(Diffusion(levels=20, steps=20, eta=1.0, min_std=1e-6), lambda noisy, time: noisy * 0.7 + 0.1 * time)
    theirs = DDPMScheduler(20, beta_schedule="squaredcos_cap_v2", clip_sample=True)
    for i in (0, 7, 18):
        level = 19 - i
        noisy = torch.randn(500, H, A)
        step = policy.drawn_step(features(500), noisy, at(i, 500))
        noise = noisy * 0.7 + 0.1 * (level + 1) / 20
        torch.manual_seed(3)
        after = theirs.step(noise, level, noisy).prev_sample
        torch.manual_seed(3)
        chance = torch.randn(500, H, A)
        torch.testing.assert_close(step.mean + step.stddev * chance, after, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_fewer_steps_are_ddim(eta):
    policy = knows(Diffusion(levels=100, steps=10, eta=eta, min_std=1e-6), lambda noisy, time: noisy * 0.7 + 0.1 * time)
    theirs = DDIMScheduler(100, beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing", clip_sample=True)
    theirs.set_timesteps(10)
    for i, level in enumerate(theirs.timesteps.tolist()):
        noisy, chance = torch.randn(9, H, A), torch.randn(9, H, A)
        noise = noisy * 0.7 + 0.1 * (level + 1) / 100
        after = theirs.step(noise, level, noisy, eta=eta, variance_noise=chance, use_clipped_model_output=True)
        ours = policy.fixed_step(features(9), noisy, at(i, 9))
        if eta:
            step = policy.drawn_step(features(9), noisy, at(i, 9))
            ours = step.mean + step.stddev * chance
        torch.testing.assert_close(ours, after.prev_sample, atol=2e-4, rtol=1e-3)


def test_a_denoiser_that_knows_the_chunk_leads_to_it_from_any_noise():
    chunk = torch.rand(6, H, A) * 2 - 1
    policy = Diffusion(levels=50, steps=5)
    kept = policy.kept

    def noise_in(noisy, time):
        level = (time * 50).round().long() - 1
        return (noisy - kept[level].sqrt() * chunk) / (1 - kept[level]).sqrt()

    knows(policy, noise_in)
    states = torch.randn(6, H, A)
    for i in range(5):
        states = policy.fixed_step(features(6), states, at(i, 6))
    torch.testing.assert_close(states, chunk, atol=1e-4, rtol=0)


def test_no_draw_is_quieter_than_the_floor():
    policy = Diffusion(levels=20, steps=10, eta=1.0, min_std=0.1)
    stds = [policy.drawn_step(features(2), torch.randn(2, H, A), at(i, 2)).stddev.mean().item() for i in range(10)]
    assert min(stds) == pytest.approx(0.1)
    assert max(stds) > 0.3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"eta": 1.5}, "eta must be from 0 .* to 1, got 1.5"),
        ({"levels": 100, "steps": 30}, "multiple of steps, got 100 and 30"),
        ({"steps": 10, "num_scored": 11}, "num_scored must be from 1 to steps, got 11 of 10"),
        ({"eta": 1.0, "min_std": 0.0}, "min_std must be positive"),
    ],
)
def test_a_diffusion_head_refuses_what_cannot_be(wrong, message):
    with pytest.raises(ValueError, match=message):
        Diffusion(**wrong)


# ---- both


HEADS = {
    "flow": partial(Flow, partial(UNet1D, channels=(32,)), steps=10),
    "diffusion": partial(Diffusion, partial(UNet1D, channels=(32,)), levels=50, steps=10),
}


def two_ways(head: str) -> tuple[torch.nn.Module, Observation]:
    """Trained on demonstrations of which half go left and half right; and an observation."""
    torch.manual_seed(1)
    policy = HEADS[head]()
    obs = PointEnv(num_envs=1).reset(0).expand(128).reshape(-1)
    side = torch.tensor([-0.1, 0.1]).repeat(64)[:, None, None].expand(128, H, A)
    optimizer = torch.optim.Adam(policy.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    for _ in range(300):
        optimizer.zero_grad()
        policy.imitation_loss(obs, side).mean().backward()
        optimizer.step()
        schedule.step()
    return policy, obs


def assert_both(drawn: torch.Tensor, pure: float) -> None:
    """Either way about as often, and at least the share `pure` goes one of them to 4 cm."""
    right = (drawn.mean((1, 2)) > 0).float().mean().item()
    assert 0.4 < right < 0.6
    assert ((drawn.abs() - 0.1).abs().amax((1, 2)) < 0.04).float().mean() > pure


@pytest.mark.parametrize("head", HEADS)
def test_two_ways_to_do_it_are_both_kept(head):
    """Half the demonstrations go left, half right: so do the draws, and none goes between; also in one step."""
    policy, obs = two_ways(head)
    many = obs[:1].expand(1000).reshape(-1)
    with torch.no_grad():
        assert_both(policy.act(many).commands, pure=0.9)
    student = FlowPolicy(SPEC, StateMLP, H, partial(UNet1D, channels=(32,)), steps=1)
    algorithm = OneStep(student, policy, total_steps=200, lr=2e-3, warmup_steps=5)
    batch = ChunkBatch(
        obs=obs, chunk=torch.zeros(128, H, A), padded=torch.zeros(128, H, dtype=torch.bool), batch_size=[128]
    )
    losses = [algorithm.update(batch)["sft_loss"] for _ in range(200)]
    assert losses[-1] < 0.2 * losses[0]
    with torch.no_grad():
        assert_both(student.act(many).commands, pure=0.75)


def test_without_chance_there_is_nothing_to_score_and_the_noise_decides():
    obs = PointEnv(num_envs=3).reset(0)
    for policy in (Flow(chain="ode"), Diffusion(eta=0.0)):
        action = policy.act(obs)
        assert action.log_prob.shape == (3, 0)
        assert policy.log_prob(obs, action).shape == (3, 0)
        torch.manual_seed(2)
        first = policy.act(obs).commands
        torch.manual_seed(2)
        assert torch.equal(policy.act(obs).commands, first)


def test_what_was_drawn_is_scored_as_gaussian_around_the_step_before():
    policy = Diffusion(levels=20, steps=4, eta=1.0, num_scored=2)
    obs = PointEnv(num_envs=3).reset(0)
    action = policy.act(obs)
    chain = action.latent["chain"]
    told = policy.encoder(obs)
    assert action.latent["first"].tolist() == [2] * 3
    scores = [policy.drawn_step(told, chain[:, i], at(2 + i, 3)).log_prob(chain[:, i + 1]) for i in range(2)]
    expected = torch.stack(scores, 2).flatten(1)  # of a command: first draw, second draw
    torch.testing.assert_close(action.log_prob, expected)
    torch.testing.assert_close(action.commands, policy.normaliser.inverse(chain[:, -1]))


def test_a_chunk_of_the_data_spans_minus_one_to_one():
    policy = Flow()
    shown = torch.rand(200, A) * torch.tensor([0.3, 0.02]) - 0.01
    policy.set_statistics(Statistics.of(torch.randn(200, SPEC.proprio_dim)), Statistics.of(shown))
    normal = policy.normaliser(shown)
    torch.testing.assert_close(normal.amin(0), torch.full((A,), -1.0))
    torch.testing.assert_close(normal.amax(0), torch.full((A,), 1.0))
    assert math.isclose(policy.normaliser.inverse(normal)[3, 0].item(), shown[3, 0].item(), abs_tol=1e-6)
