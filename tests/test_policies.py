"""What every policy owes the rest of the platform, checked for each of them."""

from functools import partial

import pytest
import torch

from policies.critic import Critic, PrivilegedCritic
from policies.deterministic import DeterministicPolicy
from policies.diffusion import DiffusionPolicy
from policies.flow import FlowPolicy
from policies.gaussian import GaussianPolicy, SquashedGaussianPolicy
from policies.residual import ResidualPolicy
from policies.token import TokenPolicy
from simulators.point import PointEnv
from vla.data.normalise import Statistics
from vla.models.denoisers import TransformerDenoiser, UNet1D
from vla.models.film_cnn import FilmCNN
from vla.models.state_mlp import StateMLP
from vla.models.text import TextEncoder
from vla.models.token_decoders import AutoregressiveDecoder
from vla.rollout import Greedy, rollout
from vla.types import Observation

H, A = 3, 2
ENV = {"num_targets": 2, "image_size": 16}
SPEC = PointEnv(**ENV).spec
SmallGaussian = partial(GaussianPolicy, encoder=StateMLP, horizon=H)
SmallUNet = partial(UNet1D, channels=(32, 32), time_width=16)
SmallTransformer = partial(TransformerDenoiser, width=32, num_layers=2)
Flow = partial(FlowPolicy, SPEC, StateMLP, H, SmallUNet)
Diffusion = partial(DiffusionPolicy, SPEC, StateMLP, H, SmallUNet)
POLICIES = {
    "token, parallel": lambda: TokenPolicy(SPEC, StateMLP, H, bins=16, temperature=1.6),
    "token, one by one": lambda: TokenPolicy(SPEC, StateMLP, H, AutoregressiveDecoder, bins=16, temperature=0.7),
    "token, seeing": lambda: TokenPolicy(SPEC, partial(FilmCNN, channels=(8, 16)), H, bins=16, soft_label_std=1.0),
    "gaussian": lambda: SmallGaussian(SPEC),
    "gaussian, squashed": lambda: SquashedGaussianPolicy(SPEC, StateMLP, H),
    "deterministic": lambda: DeterministicPolicy(SPEC, StateMLP, H),
    "gaussian, seeing": lambda: GaussianPolicy(SPEC, FilmCNN, H),
    "flow, sde": lambda: Flow(steps=4, chain="sde"),
    "flow, noise": lambda: Flow(steps=4, chain="noise"),
    "flow, one step": lambda: FlowPolicy(SPEC, StateMLP, H, SmallTransformer, steps=1, chain="noise"),
    "diffusion": lambda: Diffusion(levels=20, steps=5, eta=1.0, num_scored=3),
    "diffusion, seeing": lambda: DiffusionPolicy(
        SPEC, partial(FilmCNN, channels=(8, 16)), H, SmallTransformer, levels=20, steps=4, eta=0.5
    ),
    "residual over diffusion": lambda: ResidualPolicy(SPEC, Diffusion(levels=20, steps=2), SmallGaussian, 0.5),
    "residual over gaussian": lambda: ResidualPolicy(SPEC, SmallGaussian(SPEC), SmallGaussian),
    "residual over token": lambda: ResidualPolicy(SPEC, TokenPolicy(SPEC, StateMLP, H, bins=16), SmallGaussian),
}


CHANCY = [name for name in POLICIES if name != "deterministic"]
FACTORS = {
    "deterministic": 0,
    "flow, noise": 4 * H * A,
    "diffusion": 3 * H * A,
    "diffusion, seeing": 4 * H * A,
}  # others: H * A


def observe(num_envs: int = 5, seed: int = 0) -> Observation:
    return PointEnv(num_envs=num_envs, **ENV).reset(seed)


def statistics() -> tuple[Statistics, Statistics]:
    rng = torch.Generator().manual_seed(7)
    proprio = torch.randn(100, SPEC.proprio_dim, generator=rng) * 0.5 + 0.1
    return Statistics.of(proprio), Statistics.of(torch.rand(100, A, generator=rng) * 0.3 - 0.1)


@pytest.fixture(params=POLICIES)
def policy(request):
    """Any of them, moved away from its special initial values."""
    policy = POLICIES[request.param]()
    policy.set_statistics(*statistics())
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return policy


@pytest.fixture
def obs():
    return observe()


def test_scoring_a_decision_gives_the_probability_it_was_made_with(policy, obs, request):
    factors = FACTORS.get(request.node.callspec.params["policy"], H * A)
    for action in (policy.act(obs), policy.mode(obs)):
        torch.testing.assert_close(policy.log_prob(obs, action), action.log_prob)
        assert action.log_prob.shape == (5, factors)


@pytest.mark.parametrize("policy", CHANCY, indirect=True)
def test_a_decision_that_was_not_made_is_less_likely_than_the_most_likely_one(policy, obs):
    best = policy.log_prob(obs, policy.mode(obs)).sum(-1)
    drawn = torch.stack([policy.log_prob(obs, policy.act(obs)).sum(-1) for _ in range(20)])
    assert (drawn.mean(0) < best).all()


@pytest.mark.parametrize("policy", CHANCY, indirect=True)
def test_the_most_likely_decision_is_always_the_same_and_draws_differ(policy, obs):
    base = getattr(policy, "base", None)
    torch.testing.assert_close(policy.mode(obs).commands, policy.mode(obs).commands, rtol=0, atol=0)
    assert not torch.equal(policy.act(obs).commands, policy.act(obs).commands)
    assert base is None or not torch.equal(base.act(obs).commands, base.act(obs).commands)


def test_the_same_seed_draws_the_same_decisions(policy, obs):
    torch.manual_seed(1)
    first = policy.act(obs).commands
    torch.manual_seed(1)
    assert torch.equal(policy.act(obs).commands, first)


@pytest.mark.parametrize("policy", CHANCY, indirect=True)
def test_every_trainable_parameter_gets_a_gradient_and_no_frozen_one_does(policy, obs):
    with torch.no_grad():
        action = policy.act(obs)
    policy.log_prob(obs, action).sum().backward()
    starved = [n for n, p in policy.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert starved == []
    assert not [n for n, p in policy.named_parameters() if not p.requires_grad and p.grad is not None]


def test_imitation_reaches_every_trainable_parameter_but_those_of_chance_alone(policy, obs):
    policy.imitation_loss(obs, torch.rand(5, H, A) * 0.2 - 0.1).mean().backward()
    starved = [n for n, p in policy.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert [name for name in starved if not name.startswith("loudness")] == []


def test_decisions_do_not_depend_on_the_rest_of_the_batch(policy, obs):
    with torch.no_grad():
        action = policy.act(obs)
        torch.testing.assert_close(policy.log_prob(obs[:2], action[:2]), policy.log_prob(obs, action)[:2])
        torch.testing.assert_close(policy.log_prob(obs[3:4], action[3:4]), policy.log_prob(obs, action)[3:4])
        torch.testing.assert_close(policy.mode(obs[1:2]).commands, policy.mode(obs).commands[1:2])


def test_leading_axes_do_not_matter(policy, obs):
    both = Observation.stack([obs, observe(seed=40)])
    with torch.no_grad():
        action = policy.act(both)
        assert action.batch_size == both.batch_size
        assert action.commands.shape == (2, 5, H, A)
        torch.testing.assert_close(policy.log_prob(both, action), action.log_prob)
        torch.testing.assert_close(policy.log_prob(both[1], action[1]), action.log_prob[1])
        torch.testing.assert_close(policy.mode(obs[2]).commands, policy.mode(obs).commands[2])


def test_what_only_a_simulator_knows_is_never_read(policy, obs):
    robot = observe()
    robot.privileged = None
    torch.testing.assert_close(policy.mode(robot).commands, policy.mode(obs).commands, rtol=0, atol=0)
    action = policy.act(obs)
    torch.testing.assert_close(policy.log_prob(robot, action), policy.log_prob(obs, action), rtol=0, atol=0)


def test_weights_hold_all_that_was_learned(policy, obs, request):
    copy = POLICIES[request.node.callspec.params["policy"]]()
    copy.load_state_dict(policy.state_dict())
    torch.testing.assert_close(copy.mode(obs).commands, policy.mode(obs).commands, rtol=0, atol=0)
    action = policy.act(obs)
    torch.testing.assert_close(copy.log_prob(obs, action), action.log_prob)


def test_padding_does_not_change_the_imitation_loss(policy, obs):
    def loss(*told):
        torch.manual_seed(2)  # a denoiser is asked about a random time
        return policy.imitation_loss(obs, *told)

    policy.eval()
    chunk = torch.rand(5, H, A) * 0.2 - 0.1
    padded = torch.tensor([False, True, True]).expand(5, H)
    other = chunk.clone()
    other[:, 1:] = 0.15
    if "AutoregressiveDecoder" not in str(policy):
        torch.testing.assert_close(loss(chunk, padded), loss(other, padded))
    every = torch.zeros(5, H, dtype=torch.bool)
    torch.testing.assert_close(loss(chunk, every), loss(chunk))
    assert (loss(chunk, ~every) == 0).all()


def test_imitation_overfits_a_batch(policy, obs, request):
    slow = request.node.callspec.params["policy"].startswith(("flow", "diffusion"))
    rng = torch.Generator().manual_seed(5)
    chunk = torch.rand(5, H, A, generator=rng) * 0.2 - 0.1
    copies = 20 if slow else 1  # a denoiser learns one random time of each
    many, chunks = obs.expand(copies, 5).reshape(-1), chunk.repeat(copies, 1, 1)
    optimizer = torch.optim.Adam([p for p in policy.parameters() if p.requires_grad], 5e-3 if slow else 1e-2)
    for _ in range(300 if slow else 60):
        optimizer.zero_grad()
        policy.imitation_loss(many, chunks).mean().backward()
        optimizer.step()
    assert (policy.mode(obs).commands - chunk).abs().max() < (0.05 if slow else 0.025)


# ---- tokens


def token_policy(**settings) -> TokenPolicy:
    return TokenPolicy(SPEC, StateMLP, H, bins=16, **settings)


def test_commands_are_the_centres_of_the_chosen_tokens_in_the_order_of_the_chunk(obs):
    policy = token_policy()
    action = policy.act(obs)
    expected = -0.2 + (action.latent["tokens"].view(5, H, A) + 0.5) * 0.4 / 16
    torch.testing.assert_close(action.commands, expected)


@pytest.mark.parametrize("name", ["token, parallel", "token, one by one"])
def test_tokens_are_drawn_as_often_as_their_distribution_says(name):
    policy = POLICIES[name]()
    with torch.no_grad():
        for p in policy.decoder.parameters():
            p.mul_(3)
    obs = observe(num_envs=1).expand(5_000)
    with torch.no_grad():
        action = policy.act(obs)
        tokens = action.latent["tokens"]
        expected = policy.distribution(obs, tokens).exp().mean(0)
    drawn = torch.nn.functional.one_hot(tokens, 16).float().mean(0)
    torch.testing.assert_close(drawn, expected, atol=0.03, rtol=0)


def test_temperature_divides_the_logits_and_leaves_the_most_likely_decision(obs):
    cold, hot = token_policy(temperature=1.0), token_policy(temperature=2.0)
    hot.load_state_dict(cold.state_dict())
    torch.testing.assert_close(hot.distribution(obs), (cold.distribution(obs) / 2).log_softmax(-1))
    torch.testing.assert_close(hot.mode(obs).commands, cold.mode(obs).commands)
    chunk = torch.zeros(5, H, A)
    torch.testing.assert_close(hot.imitation_loss(obs, chunk), cold.imitation_loss(obs, chunk))


def test_only_an_autoregressive_token_depends_on_those_before_it_and_none_on_those_after(obs):
    tokens = token_policy().act(obs).latent["tokens"]
    other = tokens.clone()
    other[:, 3] = (tokens[:, 3] + 1) % 16
    parallel, serial = token_policy(), token_policy(decoder=AutoregressiveDecoder)
    torch.testing.assert_close(parallel.distribution(obs, tokens), parallel.distribution(obs, other))
    before, after = serial.distribution(obs, tokens), serial.distribution(obs, other)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert ((before - after).abs().amax(-1)[:, 4:] > 1e-4).all()
    with pytest.raises(ValueError, match="without the tokens chosen before"):
        serial.distribution(obs)


def test_imitation_is_the_cross_entropy_of_the_demonstrated_tokens(obs):
    policy = token_policy()
    chunk = torch.rand(5, H, A) * 0.4 - 0.2
    tokens = policy.bins.encode(chunk).flatten(1)
    logits = policy.distribution(obs).flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, tokens.flatten(), reduction="none").view(5, -1).mean(-1)
    torch.testing.assert_close(policy.imitation_loss(obs, chunk), expected)


def test_a_soft_label_counts_near_misses_and_a_narrow_one_is_the_hard_one(obs):
    hard, narrow, wide = token_policy(), token_policy(soft_label_std=0.01), token_policy(soft_label_std=1.0)
    narrow.load_state_dict(hard.state_dict())
    chunk = hard.bins.decode(torch.randint(1, 15, (5, H, A)))
    torch.testing.assert_close(narrow.imitation_loss(obs, chunk), hard.imitation_loss(obs, chunk))
    wide.decoder.net[-1].weight.data.zero_()  # the same logits everywhere
    near, far = (wide.decoder.net[-1].bias.data.view(H * A, 16) for _ in range(2))
    near.zero_()
    token = torch.tensor([[[8, 8]] * H] * 5)
    near[:, 9] = 3.0
    almost_right = wide.imitation_loss(obs, wide.bins.decode(token)).mean()
    far.zero_()
    far[:, 14] = 3.0
    assert almost_right < wide.imitation_loss(obs, wide.bins.decode(token)).mean() - 0.3


def test_token_policies_refuse_a_temperature_that_is_no_temperature():
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        token_policy(temperature=0.0)


# ---- gaussian and residual


def test_a_squashed_gaussian_stays_within_the_data_and_scores_commands(obs):
    policy = SquashedGaussianPolicy(SPEC, StateMLP, H, std=3.0)
    proprio, commands = statistics()
    policy.set_statistics(proprio, commands)
    action = policy.act(obs.expand(200, 5))
    assert (action.commands >= commands.low - 1e-6).all()
    assert (action.commands <= commands.high + 1e-6).all()
    assert (action.commands.amax((0, 1, 2)) > commands.high - 0.005).all()
    u = action.latent["sample"]
    mean = policy._distribution(obs).mean
    expected = torch.distributions.TransformedDistribution(
        torch.distributions.Normal(mean, policy._distribution(obs).stddev), torch.distributions.TanhTransform()
    ).log_prob(u.tanh().clamp(-1 + 1e-6, 1 - 1e-6))
    inside = u.abs() < 3  # beyond, the reference's inverse is inexact
    torch.testing.assert_close(action.log_prob.view(u.shape)[inside], expected[inside], atol=1e-2, rtol=1e-3)


def test_a_gaussian_scores_normalised_commands(obs):
    policy = SmallGaussian(SPEC, std=0.5)
    proprio, commands = statistics()
    policy.set_statistics(proprio, commands)
    action = policy.act(obs)
    z = (action.commands - commands.mean) / commands.std
    mean = (policy.mode(obs).commands - commands.mean) / commands.std
    torch.testing.assert_close(
        action.log_prob.view(5, H, A), torch.distributions.Normal(mean, 0.5).log_prob(z), rtol=1e-4, atol=1e-4
    )


def test_before_any_data_a_gaussian_spans_the_limits_of_the_command():
    policy = SmallGaussian(SPEC, std=0.5)
    with torch.no_grad():
        commands = policy.act(observe(num_envs=1).expand(5000)).commands
    assert commands.mean().item() == pytest.approx(0.0, abs=0.005)
    assert commands.std().item() == pytest.approx(0.1, rel=0.05)  # half of 0.2 m


def test_a_new_residual_leaves_the_base_alone_bit_for_bit(obs):
    base = SmallGaussian(SPEC)
    policy = ResidualPolicy(SPEC, base, SmallGaussian)
    policy.set_statistics(*statistics())
    assert torch.equal(policy.mode(obs).commands, base.mode(obs).commands)


def test_a_residual_adds_to_the_base_chunk_it_was_drawn_with(obs):
    policy = ResidualPolicy(SPEC, SmallGaussian(SPEC), partial(SmallGaussian, std=0.5), scale=0.1)
    with torch.no_grad():
        action = policy.act(obs.reshape(-1)[torch.zeros(4000, dtype=torch.long)])
    correction = action.commands - action.latent["base"]
    assert correction.std().item() == pytest.approx(0.5 * 0.1 * 0.2, rel=0.05)
    assert correction.mean().item() == pytest.approx(0.0, abs=5e-4)


def test_a_residual_sees_the_base_chunk(obs):
    policy = ResidualPolicy(SPEC, SmallGaussian(SPEC), SmallGaussian)
    torch.nn.init.normal_(policy.residual.head.weight)
    action = policy.act(obs)
    moved = action.replace(latent=action.latent.clone())
    moved.latent["base"] += 0.1
    assert not torch.allclose(policy.log_prob(obs, moved), action.log_prob)


def test_training_a_residual_keeps_the_base_in_evaluation():
    policy = ResidualPolicy(SPEC, SmallGaussian(SPEC), SmallGaussian).train()
    assert policy.residual.training
    assert not policy.base.training


def test_a_residual_of_single_commands_leaves_longer_chunks_alone_bit_for_bit_episode_after_episode():
    base = SmallGaussian(SPEC)
    policy = ResidualPolicy(SPEC, base, SmallGaussian, horizon=1)
    env = PointEnv(num_envs=5, max_steps=8, **ENV)  # no multiple of 3: part of a chunk is left when time is up
    for seed in (0, 7):
        whole, single = (rollout(env, Greedy(x), seed=seed) for x in (base, policy))
        assert single.executed.shape[-2] == 1
        for ours, theirs in zip(single.episodes(), whole.episodes(), strict=True):
            chunks = zip(theirs.executed[:-1], theirs.num_steps[:-1].tolist(), strict=True)
            assert torch.equal(ours.executed[:-1].flatten(0, 1), torch.cat([chunk[:n] for chunk, n in chunks]))


def test_a_base_is_asked_when_its_chunk_is_used_up(obs):
    asked = []

    class Base(GaussianPolicy):
        def mode(self, obs):
            asked.append(len(obs))
            return super().mode(obs)

    base = Base(SPEC, StateMLP, H)
    policy = ResidualPolicy(SPEC, base, SmallGaussian, horizon=1)
    chunk = base.mode(obs).commands
    asked.clear()
    for i in range(3):
        assert torch.equal(policy.mode(obs).commands, chunk[:, i : i + 1])
    assert len(asked) == 1
    policy.mode(obs)
    assert len(asked) == 2
    with pytest.raises(ValueError, match=r"wait for episodes of shape \(5,\), now there are \(2,\): call `begin`"):
        policy.mode(obs[:2])
    policy.begin(0)
    torch.testing.assert_close(policy.mode(obs[:2]).commands, chunk[:2, :1])


@pytest.mark.parametrize("horizon", [0, 2, 6])
def test_a_residual_divides_the_chunks_of_its_base(horizon):
    with pytest.raises(ValueError, match=f"horizon must divide the 3 commands of the base's chunks, got {horizon}"):
        ResidualPolicy(SPEC, SmallGaussian(SPEC), SmallGaussian, horizon=horizon)


# ---- encoders and critics


def test_the_instruction_is_an_ordered_set_of_words():
    text = TextEncoder()
    vectors = text(["red on green", "green on red", "Red on, green!", "red on green", ""])
    assert not torch.allclose(vectors[0], vectors[1], atol=0.1)
    torch.testing.assert_close(vectors[0], vectors[2])
    torch.testing.assert_close(vectors[0], vectors[3], rtol=0, atol=0)
    assert vectors.isfinite().all()


def test_the_words_mean_the_same_in_every_process():
    text = TextEncoder(width=8, buckets=1000)
    with torch.no_grad():
        text.word.weight.copy_(torch.arange(1000.0)[:, None].expand(-1, 8))
        text.place.weight.zero_()
        text.mix.weight.copy_(torch.eye(8))
        text.mix.bias.zero_()
    assert text(["red"])[0, 0].item() == 4_200_685_455 % 1000  # CRC-32 of "red"


@pytest.mark.parametrize("change", ["picture", "instruction", "proprio"])
def test_the_encoder_uses_all_it_is_shown(obs, change):
    encoder = FilmCNN(SPEC)
    other = observe()
    if change == "picture":
        other.images["top"] = other.images["top"].flip(1)
    elif change == "instruction":
        other.instruction = ["reach the green target"] * 5
    else:
        other.proprio = other.proprio + 0.5
    assert ((encoder(obs) - encoder(other)).abs().amax(-1) > 1e-3).all()


def test_small_things_anywhere_in_the_picture_move_the_features(obs):
    encoder = FilmCNN(PointEnv(image_size=64).spec)
    near = PointEnv(num_envs=40, image_size=64).reset(0)
    near.proprio = torch.zeros_like(near.proprio)
    with torch.no_grad():
        spread = encoder.eyes[0](near.images["top"], encoder.text(near.instruction)).std(0).mean()
    assert spread > 0.05  # without standardised maps it is 0.002


def test_proprio_is_normalised_by_the_statistics_of_the_data(obs):
    encoder = StateMLP(SPEC)
    before = encoder(obs)
    proprio, _ = statistics()
    encoder.set_statistics(proprio)
    scaled = observe()
    scaled.proprio = obs.proprio * proprio.std + proprio.mean
    torch.testing.assert_close(encoder(scaled), before, rtol=1e-4, atol=1e-5)


def test_critics_value_observations_of_any_leading_shape(obs):
    policy = SmallGaussian(SPEC)
    for critic in (Critic(policy, StateMLP), PrivilegedCritic(policy, ["goal"])):
        value = critic(Observation.stack([obs, observe(seed=9)]))
        assert value.shape == (2, 5)
        torch.testing.assert_close(value[0], critic(obs))


def test_a_privileged_critic_sees_poses_and_names_one_that_is_missing(obs):
    critic = PrivilegedCritic(SmallGaussian(SPEC), ["goal"])
    other = observe()
    other.privileged["goal"] = other.privileged["goal"] + 1
    assert not torch.allclose(critic(obs), critic(other))
    with pytest.raises(ValueError, match="pose of 'cube', the environment knows only \\['goal'\\]"):
        PrivilegedCritic(SmallGaussian(SPEC), ["cube"])(obs)
