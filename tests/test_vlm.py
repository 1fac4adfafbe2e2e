"""Token heads of vision-language models, small ones with random weights, through transformers' own loading."""

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from tiny_sft import learn_words_sharded, words_batch
from tiny_vlms import FAMILIES

from policies.adapters import mirrored
from policies.vlm import HiddenCritic, VlmPolicy
from simulators.point import PointEnv
from vla.algorithms.memory import training_bytes
from vla.algorithms.sft import SFT
from vla.checkpoint import load_policy, save_policy
from vla.data.chunks import ChunkBatch
from vla.data.normalise import Statistics
from vla.models.vlm import ActionVlm

H, A, BINS = 2, 2, 16
ENV = {"num_targets": 2, "image_size": 64}
SPEC = PointEnv(**ENV).spec


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    torch.manual_seed(0)
    made = {name: tmp_path_factory.mktemp(name) for name in FAMILIES}
    for name, make in FAMILIES.items():
        make(made[name])
    return made


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, folders) -> Path:
    return folders[request.param]


@pytest.fixture
def obs():
    return PointEnv(num_envs=3, **ENV).reset(0)


def policy_of(folder: Path, **options) -> VlmPolicy:
    torch.manual_seed(1)
    lora = {"lora_rank": options.pop("lora_rank")} if "lora_rank" in options else {}
    return VlmPolicy(SPEC, partial(ActionVlm, pretrained=str(folder), **lora), H, bins=BINS, **options).eval()


def loud(policy: VlmPolicy) -> VlmPolicy:
    """With stronger layers and words that differ: random layers are so weak, and new words so alike, that none hears
    another.
    """
    for name, p in policy.words.vlm.named_parameters():
        if "layers" in name and p.ndim > 1:
            p.data.mul_(5)
    for words in (policy.words.vlm.get_input_embeddings(), policy.words.vlm.get_output_embeddings()):
        words.weight.data.add_(torch.randn_like(words.weight))
    return policy


@pytest.mark.parametrize("parallel", [True, False])
def test_scoring_a_decision_gives_the_probability_it_was_made_with(folder, obs, parallel):
    policy = loud(policy_of(folder, parallel=parallel, temperature=1.6))
    with torch.no_grad():
        for action in (policy.act(obs), policy.mode(obs)):
            assert action.log_prob.shape == (3, H * A)
            torch.testing.assert_close(policy.log_prob(obs, action), action.log_prob, atol=1e-4, rtol=1e-4)


def test_a_mirrored_policy_sees_the_other_side(folders, obs):
    plain, other = (loud(policy_of(folders["smolvlm"], mirrored=x)) for x in (False, True))
    other.load_state_dict(plain.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(other.distribution(mirrored(obs)), plain.distribution(obs), rtol=0, atol=0)
        assert not torch.equal(other.distribution(obs), plain.distribution(obs))


def test_a_token_hears_those_before_it_and_no_others(folder, obs):
    policy = loud(policy_of(folder, parallel=False))
    tokens = torch.zeros(3, H * A, dtype=torch.long)
    other = tokens.clone()
    other[:, 1] = BINS - 1
    with torch.no_grad():
        change = (policy.distribution(obs, tokens) - policy.distribution(obs, other)).abs().amax((0, 2))
    assert (change[:2] < 1e-5).all()
    assert (change[2:] > 1e-3).all()


@pytest.mark.parametrize("parallel", [True, False])
def test_decisions_do_not_depend_on_the_rest_of_the_batch(folder, obs, parallel):
    """Instructions of different lengths are padded: that must not be seen."""
    obs.instruction = ["go", "reach the very far and very red target over there", "reach the blue target"]
    policy = policy_of(folder, parallel=parallel)
    with torch.no_grad():
        action = policy.act(obs)
        for i in range(3):
            alone = policy.log_prob(obs[i : i + 1], action[i : i + 1])
            torch.testing.assert_close(alone, policy.log_prob(obs, action)[i : i + 1], atol=2e-4, rtol=1e-3)


def test_greedy_tokens_one_by_one_are_those_of_transformers_own_generate(folder, obs):
    policy = policy_of(folder, parallel=False)
    words = policy.words
    prompt = policy._read(obs)
    only = words.action_ids.tolist()
    with torch.no_grad():
        written = words.vlm.generate(
            **prompt,
            max_new_tokens=H * A,
            min_new_tokens=H * A,
            do_sample=False,
            prefix_allowed_tokens_fn=lambda row, ids: only,
        )[:, -H * A :]
        tokens = policy.mode(obs).latent["tokens"]
    assert torch.equal(words.action_ids[tokens], written)


@pytest.mark.parametrize("change", ["picture", "instruction", "proprio"])
def test_the_model_is_shown_all_there_is(folder, obs, change):
    policy = loud(policy_of(folder))
    other = obs.clone()
    if change == "picture":
        other.images["top"] = 255 - other.images["top"]
    elif change == "instruction":
        other.instruction = ["stop", "turn around now", "go"]
    else:
        other.proprio = other.proprio + 0.5
    with torch.no_grad():
        difference = (policy.distribution(obs) - policy.distribution(other)).abs().amax((1, 2))
    assert (difference > 1e-6).all()


@pytest.mark.parametrize("parallel", [True, False])
def test_imitation_reaches_the_weights(folder, obs, parallel):
    policy = policy_of(folder, parallel=parallel)
    loss = policy.imitation_loss(obs, torch.rand(3, H, A) * 0.4 - 0.2).mean()
    loss.backward()
    grads = {n for n, p in policy.named_parameters() if p.grad is not None and p.grad.any()}
    assert any("vision" in n or "visual" in n for n in grads)
    assert any("layers.0" in n for n in grads)


def test_a_model_learns_a_batch(folders, obs):
    policy = policy_of(folders["smolvlm"], proprio=False)
    chunk = torch.tensor([[[0.1, -0.1]] * H, [[-0.15, 0.05]] * H, [[0.0, 0.19]] * H])
    obs.instruction = ["go left", "turn around", "stop"]
    optimizer = torch.optim.Adam(policy.parameters(), 3e-3)
    for step in range(400):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / 400)  # at a constant rate the last step may be a bad one
        optimizer.zero_grad()
        policy.imitation_loss(obs, chunk).mean().backward()
        optimizer.step()
    assert (policy.mode(obs).commands - chunk).abs().max() < 0.02


def test_a_checkpoint_needs_nothing_but_itself(folder, folders, obs, tmp_path):
    policy = policy_of(folder)
    policy.set_statistics(Statistics.of(torch.randn(50, SPEC.proprio_dim)), Statistics.of(torch.rand(50, A)))
    words = {"_target_": "vla.models.vlm.ActionVlm", "_partial_": True, "pretrained": str(folder)}
    config = {"_target_": "policies.vlm.VlmPolicy", "horizon": H, "bins": BINS, "words": words}
    save_policy(tmp_path / "policy", policy, config)
    assert str(folder) not in (tmp_path / "policy" / "policy.json").read_text()
    moved = (tmp_path / "policy").rename(tmp_path / "elsewhere")
    loaded = load_policy(moved)
    with torch.no_grad():
        torch.testing.assert_close(loaded.mode(obs).commands, policy.mode(obs).commands, rtol=0, atol=0)
        torch.testing.assert_close(loaded.distribution(obs), policy.distribution(obs))


def test_adapters_train_little_and_leave_the_model_alone_at_first(folders, obs):
    plain, tuned = policy_of(folders["qwen3-vl"]), policy_of(folders["qwen3-vl"], lora_rank=4)
    with torch.no_grad():
        torch.testing.assert_close(plain.distribution(obs), tuned.distribution(obs), atol=1e-5, rtol=1e-5)
    trained = {n for n, p in tuned.named_parameters() if p.requires_grad}
    assert all("lora_" in n or "modules_to_save" in n for n in trained)
    tuned.imitation_loss(obs, torch.zeros(3, H, A)).mean().backward()
    assert any("lora_B" in n and p.grad.any() for n, p in tuned.named_parameters() if p.grad is not None)


def test_a_critic_judges_by_the_hidden_state_and_teaches_it_nothing(folders, obs):
    policy = policy_of(folders["smolvlm"])
    critic = HiddenCritic(policy)
    value = critic(obs)
    assert value.shape == (3,)
    value.sum().backward()
    assert all(p.grad is None for p in policy.parameters())
    assert not any(x is y for x in critic.parameters() for y in policy.parameters())


def test_recomputing_layers_keeps_less_and_learns_the_same(folders, obs):
    chunk = torch.rand(3, H, A) * 0.2
    batch = ChunkBatch(obs=obs, chunk=chunk, padded=torch.zeros(3, H, dtype=torch.bool), batch_size=[3])
    sizes, losses = [], []
    for recompute in (False, True):
        policy = policy_of(folders["qwen3-vl"]).train()
        algorithm = SFT(policy, total_steps=20, warmup_steps=1, recompute=recompute)
        sizes.append(training_bytes(algorithm, batch[:1], rows=1)["activations"])
        losses.append([algorithm.update(batch)["sft_loss"] for _ in range(3)])
    assert sizes[1] < 0.7 * sizes[0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_two_processes_with_half_a_model_each_learn_what_one_does(folders, tmp_path):
    mp.spawn(learn_words_sharded, (str(tmp_path), str(folders["qwen3-vl"])), nprocs=2)
    policy = policy_of(folders["qwen3-vl"], parallel=False).train()
    algorithm = SFT(policy, total_steps=20, warmup_steps=1)
    losses = [algorithm.update(words_batch(PointEnv(num_envs=4, **ENV)))["sft_loss"] for _ in range(3)]
    assert torch.load(tmp_path / "told.pt", weights_only=True) == pytest.approx(losses, rel=1e-5)
    assert len(policy.blocks()) == 4
