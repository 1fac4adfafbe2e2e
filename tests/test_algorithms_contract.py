"""What every algorithm owes the platform: it can be interrupted, it refuses what it must not learn from."""

import copy
from functools import partial

import pytest
import torch
from fragile import Losing

from policies.critic import Critic
from policies.flow import FlowPolicy
from policies.gaussian import GaussianPolicy
from policies.residual import ResidualPolicy
from policies.teacher import TokenTeacher
from policies.token import TokenPolicy
from simulators.point import Homing, PointEnv
from vla.algorithms.distill import DIVERGENCES, Distill
from vla.algorithms.grpo import GRPO
from vla.algorithms.losses import executed_factors
from vla.algorithms.ppo import PPO
from vla.algorithms.rpd import RPD
from vla.algorithms.sft import SFT, warmup_cosine
from vla.data.chunks import ChunkBatch
from vla.models.denoisers import UNet1D
from vla.models.state_mlp import StateMLP
from vla.rollout import rollout
from vla.types import Rollout

SPEC = PointEnv().spec
Tokens = partial(TokenPolicy, SPEC, StateMLP, 2, bins=8)
Gauss = partial(GaussianPolicy, SPEC, StateMLP, 2)
Flow = partial(FlowPolicy, SPEC, StateMLP, 2, partial(UNet1D, channels=(16,)), steps=3, chain="noise")
Teacher = partial(TokenTeacher, actor=Homing(2))
critic = partial(Critic, encoder=StateMLP)
per_command = partial(Critic, encoder=StateMLP, per_command=True)
ALGORITHMS = {
    "sft": (Tokens, lambda policy: SFT(policy, total_steps=20, warmup_steps=5)),
    "ppo": (Gauss, lambda policy: PPO(policy, critic, epochs=2, minibatch=16)),
    "ppo of tokens": (Tokens, lambda policy: PPO(policy, critic, granularity="factor", minibatch=16)),
    "ppo of commands": (
        Gauss,
        lambda policy: PPO(policy, per_command, granularity="command", value_clip=0.2, dual_clip=3.0, minibatch=16),
    ),
    "rpd": (Gauss, lambda policy: RPD(policy, critic, lambda _: Homing(2), until=3, epochs=2, minibatch=16)),
    "rpd of tokens": (
        Tokens,
        lambda policy: RPD(policy, critic, lambda _: Homing(2), distance="nll", granularity="factor", minibatch=16),
    ),
    "grpo": (Gauss, lambda policy: GRPO(policy, group=2, keep=None, epochs=2, minibatch=16)),
    "ppo of a flow": (Flow, lambda policy: PPO(policy, critic, epochs=2, minibatch=16)),
    "ppo of draws": (
        Flow,
        lambda policy: PPO(policy, critic, granularity="factor", chain_discount=0.9, chain_clip=0.1, minibatch=16),
    ),
    "ppo, decoupled": (Gauss, lambda policy: PPO(policy, critic, epochs=2, minibatch=16, decoupled=True)),
    "grpo, decoupled": (Gauss, lambda policy: GRPO(policy, group=2, keep=None, minibatch=16, decoupled=True)),
    "distill": (Tokens, lambda policy: Distill(policy, Teacher, epochs=2, minibatch=16)),
    "distill, exact": (Tokens, lambda policy: Distill(policy, Teacher, divergence="reverse_exact", minibatch=16)),
    "distill, hard": (Tokens, lambda policy: Distill(policy, Teacher, divergence="hard", minibatch=16)),
    "distill, k3": (Tokens, lambda policy: Distill(policy, Teacher, divergence="k3", epochs=2, minibatch=16)),
    "distill, replay": (
        Tokens,
        lambda policy: Distill(policy, Teacher, divergence="reverse_exact", minibatch=16, replay=2, shift=1),
    ),
}


def play(policy, seed: int = 0) -> Rollout:
    return rollout(PointEnv(num_envs=8), policy, seed=seed)


def experience(algorithm, policy, seed: int):
    """What its update takes: chunks of an expert, or the policy's own episodes."""
    if not isinstance(algorithm, SFT):
        return play(policy, seed)
    shown = play(Homing(2), seed)
    shown = shown[shown.valid]
    chunk = shown.action.commands
    padded = torch.zeros(chunk.shape[:2], dtype=torch.bool)
    return ChunkBatch(obs=shown.obs, chunk=chunk, padded=padded, batch_size=[len(chunk)])


@pytest.mark.parametrize("name", ALGORITHMS)
def test_all_that_is_learned_is_on_the_device_of_the_policy(name):
    policy, algorithm = ALGORITHMS[name]
    parts = algorithm(policy().to("meta")).parts.values()
    modules = [part for part in parts if isinstance(part, torch.nn.Module)]
    assert {x.device.type for part in modules for x in part.parameters()} == {"meta"}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_update_after_restoring_is_the_one_that_would_have_followed(name):
    make_policy, make_algorithm = ALGORITHMS[name]
    policy = make_policy()
    algorithm = make_algorithm(policy)
    for i in range(2):
        algorithm.update(experience(algorithm, policy, seed=i))
    saved = copy.deepcopy({name: part.state_dict() for name, part in algorithm.parts.items()})
    random = torch.get_rng_state()
    metrics = algorithm.update(experience(algorithm, policy, seed=2))

    other_policy = make_policy()
    other = make_algorithm(other_policy)
    for part, state in saved.items():
        other.parts[part].load_state_dict(state)
    torch.set_rng_state(random)
    assert other.update(experience(other, other_policy, seed=2)) == metrics
    for (n, ours), (_, theirs) in zip(policy.named_parameters(), other_policy.named_parameters(), strict=True):
        assert torch.equal(ours, theirs), n


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_update_changes_what_it_trains_and_reports_finite_numbers(name):
    make_policy, make_algorithm = ALGORITHMS[name]
    policy = make_policy()
    algorithm = make_algorithm(policy)
    before = copy.deepcopy(policy.state_dict())
    metrics = algorithm.update(experience(algorithm, policy, seed=0))
    changed = {n for n, p in policy.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {n for n, _ in policy.named_parameters()}
    assert all(isinstance(x, int | float) and x == x and abs(x) < 1e6 for x in metrics.values())


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name != "sft" and "decoupled" not in name])
def test_decisions_of_another_policy_are_refused_before_anything_is_learned(name):
    make_policy, make_algorithm = ALGORITHMS[name]
    policy, stranger = make_policy(), make_policy()
    with torch.no_grad():
        for p in stranger.parameters():
            p.add_(0.1 * torch.randn_like(p))
    before = copy.deepcopy(policy.state_dict())
    with pytest.raises(RuntimeError, match=r"\|ratio - 1\| is up to [0-9.]+, allowed is 0.001"):
        make_algorithm(policy).update(play(stranger))
    assert all(torch.equal(x, before[n]) for n, x in policy.state_dict().items())


def test_a_policy_without_chance_has_nothing_to_reinforce():
    policy = Flow(chain="ode")
    with pytest.raises(ValueError, match="FlowPolicy decides without chance that could be scored: give it some"):
        PPO(policy, critic).update(play(policy))


def test_scoring_at_another_temperature_is_refused():
    policy = Tokens(temperature=1.6)
    played = play(policy)
    policy.temperature = 1.0
    with pytest.raises(RuntimeError, match="temperature"):
        Distill(policy, Teacher).update(played)


def test_a_score_that_is_no_number_is_refused():
    policy = Tokens()
    played = play(policy)
    with torch.no_grad():
        policy.decoder.net[0].weight.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="up to inf"):
        PPO(policy, critic).update(played)


@pytest.mark.parametrize("name", ["ppo", "ppo of tokens", "ppo of commands", "grpo", "ppo, decoupled", "distill"])
def test_what_follows_the_end_of_an_episode_teaches_nothing(name):
    """Rows after the end, and the rest of a chunk in whose middle time ran out."""
    make_policy, make_algorithm = ALGORITHMS[name]
    policy = make_policy()
    played = rollout(PointEnv(num_envs=8, max_steps=3), policy, seed=0)
    unplayed = (torch.arange(2) >= played.num_steps[..., None]).repeat_interleave(2, -1)
    assert unplayed[played.valid].any()
    assert not unplayed[played.valid].all()
    spoiled = played.clone()
    spoiled.reward[~played.valid] = 1e6
    spoiled.action.log_prob = played.action.log_prob.masked_fill(unplayed, -50.0)
    learned = []
    for experience in (played, spoiled):
        student = copy.deepcopy(policy)
        torch.manual_seed(3)
        algorithm = make_algorithm(student)
        algorithm.scores_checked = True
        algorithm.update(experience)
        learned.append(dict(student.named_parameters()))
    for n, p in learned[0].items():
        torch.testing.assert_close(p, learned[1][n], msg=n)


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name != "sft"])
def test_lost_episodes_teach_nothing(name):
    make_policy, make_algorithm = ALGORITHMS[name]
    policy = make_policy()
    played = rollout(Losing(num_envs=8, lost=[2, 5]), policy, seed=0)
    assert played.lost() == [2, 5]
    learned = []
    others = [0, 3, 4, 7] if "grpo" in name else [0, 1, 3, 4, 6, 7]  # 1 and 6 have lost what they are compared with
    for experience in (played, played[:, others]):
        student = copy.deepcopy(policy)
        torch.manual_seed(3)
        make_algorithm(student).update(experience)
        learned.append(dict(student.named_parameters()))
    for n, p in learned[0].items():
        torch.testing.assert_close(p, learned[1][n], rtol=1e-5, atol=1e-6, msg=n)


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name != "sft"])
def test_nothing_can_be_learned_when_every_episode_was_lost(name):
    make_policy, make_algorithm = ALGORITHMS[name]
    policy = make_policy()
    before = copy.deepcopy(policy.state_dict())
    with pytest.raises(ValueError, match="none of 8 episodes has a decision to learn from, 8 were lost"):
        make_algorithm(policy).update(rollout(Losing(num_envs=8, lost=range(8)), policy, seed=0))
    assert all(torch.equal(x, before[n]) for n, x in policy.state_dict().items())


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_teachers_opinion_of_commands_that_were_never_executed_does_not_count(divergence):
    class Otherwise(Homing):
        def act(self, obs):
            action = super().act(obs)
            action.commands = action.commands.clone()
            action.commands[..., 1, :] += 0.1
            return action

    policy = Tokens()
    played = rollout(PointEnv(num_envs=8, max_steps=1), policy, seed=0)
    learned = []
    for teacher in (Homing(2), Otherwise(2)):
        student = copy.deepcopy(policy)
        Distill(student, partial(TokenTeacher, actor=teacher), divergence=divergence).update(played)
        learned.append(dict(student.named_parameters()))
    for n, p in learned[0].items():
        torch.testing.assert_close(p, learned[1][n], msg=n)


def test_the_teacher_is_asked_once_per_update_and_only_afterwards():
    asked = []

    class Counting(TokenTeacher):
        def distribution(self, obs, tokens=None):
            asked.append(len(obs))
            return super().distribution(obs, tokens)

    policy = Tokens()
    for divergence in DIVERGENCES:
        algorithm = Distill(policy, partial(Counting, actor=Homing(2)), divergence=divergence, epochs=3, minibatch=16)
        played = play(policy)
        asked.clear()
        algorithm.update(played)
        assert sum(asked) == played.valid.sum()


def test_both_divergences_have_the_same_gradient_when_every_token_is_weighted_by_its_probability():
    """A player that drew every token equally often stands for all outcomes; the importance ratio does the rest."""
    env = PointEnv(num_envs=1)
    policy = TokenPolicy(env.spec, StateMLP, 1, bins=4)
    played = rollout(env, policy, seed=0)[:1].expand(1, 16).clone()
    played.action.latent["tokens"] = torch.cartesian_prod(torch.arange(4), torch.arange(4))[None]
    played.action.log_prob = torch.full((1, 16, 2), 1 / 4).log()
    gradients = []
    for divergence in ("reverse_sampled", "reverse_exact"):
        settings = {"divergence": divergence, "lr": 0.0, "clip": None, "minibatch": 16, "max_grad_norm": 1e9}
        algorithm = Distill(policy, partial(TokenTeacher, actor=Homing(1)), **settings)
        algorithm.scores_checked = True
        algorithm.update(played)
        gradients.append({n: p.grad.clone() for n, p in policy.named_parameters()})
    for n, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][n], rtol=1e-3, atol=1e-5, msg=n)


def test_the_forward_divergence_has_the_gradient_of_imitating_the_teachers_distribution():
    policy = Tokens()
    played = play(policy)
    algorithm = Distill(policy, Teacher, divergence="forward_exact", lr=0.0, minibatch=10_000, max_grad_norm=1e9)
    algorithm.update(played)
    gradient = {n: p.grad.clone() for n, p in policy.named_parameters()}
    policy.zero_grad()
    decisions = played[played.valid]
    wanted = Teacher(policy).distribution(decisions.obs).exp()
    counts = executed_factors(decisions)
    cross_entropy = -(wanted * policy.distribution(decisions.obs, decisions.action.latent["tokens"])).sum(-1)
    (cross_entropy * counts).sum().div(counts.sum()).backward()
    for n, p in policy.named_parameters():
        torch.testing.assert_close(p.grad, gradient[n], rtol=1e-3, atol=1e-5, msg=n)


def test_clipping_bounds_what_a_confident_teacher_can_demand():
    policy = Tokens()
    played = play(policy)
    losses = {}
    for clip in (None, 0.5):
        algorithm = Distill(policy, partial(Teacher, std=0.1, doubt=0.0), lr=0.0, clip=clip, minibatch=10_000)
        losses[clip] = algorithm.update(played)
    assert abs(losses[0.5]["distill_loss"]) <= 0.5
    assert losses[None]["distill_loss"] > 5
    assert losses[0.5]["reverse_kl"] == pytest.approx(losses[None]["reverse_kl"])  # shuffled, so not in the last bits
    assert losses[None]["reverse_kl"] == pytest.approx(losses[None]["distill_loss"])


def test_ppo_stops_an_update_that_has_moved_too_far():
    policy = Gauss()
    short = PPO(policy, critic, lr=1e-2, epochs=10, minibatch=16, max_kl=1e-4).update(play(policy))
    policy = Gauss()
    whole = PPO(policy, critic, lr=1e-2, epochs=10, minibatch=16).update(play(policy))
    assert (short["epochs"], whole["epochs"]) == (1, 10)


def test_ppo_trains_the_critic_towards_the_returns():
    policy = Gauss()
    algorithm = PPO(policy, critic, lr=1e-2, gamma=0.9, lam=1.0, epochs=40, minibatch=64)
    played = play(policy)
    first = algorithm._values(played.obs)
    algorithm.update(played)
    value = algorithm._values(played.obs)[played.valid]
    returns = torch.zeros_like(played.reward)
    last = torch.zeros(8)
    for t in reversed(range(len(returns))):
        last = played.reward[t] + 0.9 ** played.num_steps[t] * last
        returns[t] = last
    before = (first[played.valid] - returns[played.valid]).square().mean()
    assert (value - returns[played.valid]).square().mean() < 0.5 * before


def test_distillation_refuses_what_cannot_be_graded():
    with pytest.raises(ValueError, match="got 'forward'"):
        Distill(Tokens(), Teacher, divergence="forward")
    with pytest.raises(TypeError, match="GaussianPolicy has no `distribution`"):
        Distill(Gauss(), lambda policy: policy, divergence="reverse_exact")
    with pytest.raises(TypeError, match="GaussianPolicy is none"):
        Distill(Gauss(), Teacher)


def test_a_policy_without_anything_to_train_is_refused():
    with pytest.raises(ValueError, match="nothing to train in TokenPolicy"):
        SFT(Tokens().requires_grad_(requires_grad=False), total_steps=200)


def test_the_frozen_base_of_a_residual_is_left_out_of_training():
    base = Gauss()
    policy = ResidualPolicy(SPEC, base, partial(GaussianPolicy, encoder=StateMLP, horizon=2))
    before = copy.deepcopy(base.state_dict())
    PPO(policy, critic, lr=1e-2, minibatch=16).update(play(policy))
    assert all(torch.equal(x, before[n]) for n, x in base.state_dict().items())


def test_the_learning_rate_warms_up_and_falls_along_a_cosine_to_zero():
    factors = [warmup_cosine(step, 4, 12) for step in range(14)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    assert factors[8] == pytest.approx(0.5)
    assert factors[12:] == pytest.approx([0.0, 0.0])


def test_sft_steps_with_the_learning_rate_it_reports():
    policy = Tokens()
    algorithm = SFT(policy, total_steps=10, lr=0.1, warmup_steps=2, weight_decay=0.0)
    batch = experience(algorithm, policy, seed=0)
    before = policy.decoder.net[-1].bias.detach().clone()
    lr = algorithm.update(batch)["lr"]
    assert lr == pytest.approx(0.05)
    moved = (policy.decoder.net[-1].bias - before).abs().max().item()
    assert moved == pytest.approx(0.05, rel=1e-2)  # Adam's first step is as long as its learning rate
    assert algorithm.update(batch)["lr"] == pytest.approx(0.1)


def test_sft_refuses_a_warmup_longer_than_the_training():
    with pytest.raises(ValueError, match="got 100 of 50"):
        SFT(Tokens(), total_steps=50)


def test_replay_learns_from_the_last_updates_and_no_longer_ones():
    policy = Tokens()
    algorithm = Distill(policy, Teacher, divergence="reverse_exact", replay=1, minibatch=64)
    played = [rollout(PointEnv(num_envs=3, max_steps=6), policy, seed=i) for i in (0, 10, 20)]
    for episodes in played:
        algorithm.scores_checked = True
        algorithm.update(episodes)
    kept = torch.cat([x.decisions.obs.proprio for x in algorithm.memory.kept])
    torch.testing.assert_close(kept, torch.cat([x[x.valid].obs.proprio for x in played[1:]]))
    assert all(x.decisions.obs.privileged is None for x in algorithm.memory.kept)


def test_replay_with_sampled_divergence_is_refused():
    with pytest.raises(ValueError, match="replay goes with an exact divergence only"):
        Distill(Tokens(), Teacher, replay=1)


def test_in_its_first_updates_only_the_critic_learns():
    policy = Gauss()
    algorithm = PPO(policy, critic, critic_only=1, minibatch=16)
    before, judged = copy.deepcopy(policy.state_dict()), copy.deepcopy(algorithm.critic.state_dict())
    algorithm.update(play(policy))
    assert all(torch.equal(x, before[n]) for n, x in policy.state_dict().items())
    assert any(not torch.equal(x, judged[n]) for n, x in algorithm.critic.state_dict().items())
    algorithm.update(play(policy))
    assert any(not torch.equal(x, before[n]) for n, x in policy.state_dict().items())


def test_values_per_command_need_rewards_per_command_and_no_ratio_of_whole_chunks():
    policy = Gauss()
    with pytest.raises(ValueError, match="need the reward of each command"):
        PPO(policy, per_command, granularity="command").update(play(policy).replace(rewards=None))
    with pytest.raises(ValueError, match="a ratio per command or factor: set granularity"):
        PPO(policy, per_command, granularity="chunk").update(play(policy))


def grouped(policy, success: list[list[bool]], reward: list[list[float]] | None = None) -> Rollout:
    """Two episodes, each played as often as told; what they earned and whether they succeeded is as told."""
    told = torch.tensor(success).flatten()
    played = rollout(PointEnv(num_envs=len(told)), policy, seed=0)
    first = torch.arange(len(played))[:, None] == 0
    gained = torch.tensor(reward).flatten() if reward else told.float()
    return played.replace(success=first & told & played.valid, reward=first * gained)


def test_only_groups_that_differ_enough_teach():
    policy = Gauss()
    algorithm = GRPO(policy, group=2, keep=(0.1, 0.9), minibatch=10_000, max_grad_norm=1e9)
    before = copy.deepcopy(policy.state_dict())
    assert algorithm.update(grouped(policy, [[True, False], [True, False]]))["kept"] == 0.0
    assert all(torch.equal(x, before[n]) for n, x in policy.state_dict().items())
    told = algorithm.update(grouped(policy, [[True, False], [False, False]]))
    assert told["kept"] == 0.5
    assert any(not torch.equal(x, before[n]) for n, x in policy.state_dict().items())


def test_a_group_of_which_one_was_lost_is_left_out_whole():
    policy = Gauss()
    played = rollout(Losing(num_envs=4, lost=[2]), policy, seed=0)
    assert GRPO(policy, group=2, keep=None)._kept(played).tolist() == [False, True, False, True]


def test_episodes_of_different_lengths_count_alike_if_that_is_wanted():
    policy = Gauss()
    played = grouped(policy, [[True], [False]])
    played.valid[2:, 1] = False
    length = played.valid.sum(0).float()
    assert length[0] > length[1] == 2
    for normalised in (False, True):
        algorithm = GRPO(policy, group=2, advantage="mean", keep=None, length_normalised=normalised)
        kept = torch.ones(2, dtype=torch.bool)
        sums = (algorithm._advantage(played, kept) * played.valid).sum(0)
        expected = 0.5 * length.mean() if normalised else 0.5 * length
        torch.testing.assert_close(sums, torch.tensor([1.0, -1.0]) * expected)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"group": 1}, "group must be at least 2, got 1"),
        ({"advantage": "rank"}, "advantage must be one of std, mean, leave_one_out, got 'rank'"),
        ({"keep": (0.9, 0.1)}, r"keep must be two growing shares of success, such as \[0.1, 0.9\], got \(0.9, 0.1\)"),
        ({"clip": 0.0}, "clip must be a number between 0 and 1"),
        ({"dual_clip": 0.5}, "dual_clip must be above 1"),
        ({"granularity": "token"}, "granularity must be one of factor, command, chunk, got 'token'"),
    ],
)
def test_grpo_refuses_what_cannot_be(wrong, message):
    with pytest.raises(ValueError, match=message):
        GRPO(Gauss(), **wrong)
    with pytest.raises(ValueError, match="8 episodes are not groups of 3"):
        GRPO(Gauss(), group=3).update(play(Gauss()))
