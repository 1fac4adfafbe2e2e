"""LeRobot's policies through its own loading, small and with random weights, as what they are here and there."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from programs import run
from safetensors.torch import load_file, save_file
from tiny_pi import shrink
from tiny_vlms import paligemma, smolvlm

from policies.adapters import mirrored
from policies.gaussian import GaussianPolicy
from policies.lerobot import LerobotPolicy
from policies.lerobot_flow import LerobotFlow
from policies.residual import ResidualPolicy
from simulators.point import PointEnv
from vla.checkpoint import load_policy, save_policy
from vla.data.normalise import Statistics
from vla.models.state_mlp import StateMLP
from vla.recipes import evaluate, import_policy, inspect

ENV = {"num_targets": 2, "image_size": 64}
SPEC = PointEnv(**ENV).spec
KINDS = ("act", "diffusion", "smolvla", "pi0", "pi05")
FLOWS = KINDS[2:]


def features():
    from lerobot.configs import FeatureType, PolicyFeature

    seen = {
        "observation.images.top": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)),
        "observation.state": PolicyFeature(FeatureType.STATE, (SPEC.proprio_dim,)),
    }
    return {"input_features": seen, "output_features": {"action": PolicyFeature(FeatureType.ACTION, (2,))}}


def make(kind: str, folder: Path, vlm: Path) -> None:
    """As `lerobot-train` leaves it: configuration, weights, processors."""
    from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors

    pi = {
        "chunk_size": 4, "n_action_steps": 3, "max_state_dim": 8, "max_action_dim": 4, "image_resolution": (64, 64),
        "tokenizer_max_length": 48, "num_inference_steps": 3,
    }  # fmt: skip
    options = {
        "pi0": pi,
        "pi05": pi,
        "act": {"chunk_size": 4, "n_action_steps": 3, "dim_model": 32, "n_heads": 2, "dim_feedforward": 32,
                "n_encoder_layers": 1, "n_vae_encoder_layers": 1, "latent_dim": 4, "pretrained_backbone_weights": None},
        "diffusion": {"horizon": 8, "n_action_steps": 3, "down_dims": (16, 32), "pretrained_backbone_weights": None,
                      "crop_shape": None, "num_train_timesteps": 10, "spatial_softmax_num_keypoints": 4,
                      "noise_scheduler_type": "DDIM"},
        "smolvla": {"vlm_model_name": str(vlm), "load_vlm_weights": False, "resize_imgs_with_padding": (64, 64),
                    "chunk_size": 4, "n_action_steps": 3, "num_vlm_layers": 2, "max_state_dim": 8, "max_action_dim": 4,
                    "tokenizer_max_length": 24, "freeze_vision_encoder": False, "train_expert_only": False,
                    "num_steps": 3},
    }[kind]  # fmt: skip
    torch.manual_seed(0)
    config = make_policy_config(kind, device="cpu", push_to_hub=False, **features(), **options)
    policy = get_policy_class(kind)(config)
    stats = {
        name: {
            "mean": torch.full((size,), 0.1), "std": torch.full((size,), 0.5),
            "min": torch.full((size,), -0.2), "max": torch.full((size,), 0.3),
            "q01": torch.full((size,), -0.2), "q99": torch.full((size,), 0.3),
        }
        for name, size in (("observation.state", SPEC.proprio_dim), ("action", 2))
    }  # fmt: skip
    stats["observation.images.top"] = {"mean": torch.full((3, 1, 1), 0.5), "std": torch.full((3, 1, 1), 0.25)}
    before, after = make_pre_post_processors(config, dataset_stats=stats)
    policy.save_pretrained(folder)
    before.save_pretrained(folder)
    after.save_pretrained(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    vlm, tokenizer = tmp_path_factory.mktemp("vlm"), tmp_path_factory.mktemp("tokenizer")
    smolvlm(vlm)
    paligemma(tokenizer)
    made = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch, tokenizer)
        for kind, folder in made.items():
            make(kind, folder, vlm)
        yield made


@pytest.fixture(params=KINDS)
def folder(request, folders) -> Path:
    return folders[request.param]


@pytest.fixture
def obs():
    return PointEnv(num_envs=3, **ENV).reset(0)


def test_it_decides_what_lerobot_would(folder, obs):
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    policy = LerobotPolicy(SPEC, str(folder)).eval()
    kind = json.loads((folder / "config.json").read_text())["type"]
    theirs = get_policy_class(kind).from_pretrained(str(folder))
    before, after = make_pre_post_processors(theirs.config, pretrained_path=str(folder))
    batch = {
        "observation.images.top": obs.images["top"].permute(0, 3, 1, 2).float() / 255,
        "observation.state": obs.proprio,
        "task": list(obs.instruction),
    }
    torch.manual_seed(5)
    theirs.reset()
    first = after(theirs.select_action(before(batch)))
    torch.manual_seed(5)
    ours = policy.act(obs)
    assert ours.commands.shape == (3, 3, 2)
    torch.testing.assert_close(ours.commands[:, 0], first, atol=1e-5, rtol=1e-4)


def test_the_most_likely_decision_is_always_the_same(folder, obs):
    policy = LerobotPolicy(SPEC, str(folder)).eval()
    assert torch.equal(policy.mode(obs).commands, policy.mode(obs).commands)
    torch.testing.assert_close(policy.mode(obs[1:2]).commands, policy.mode(obs).commands[1:2], atol=1e-4, rtol=1e-3)


def test_imitation_learns_and_what_was_learned_loads_in_lerobot(folder, obs, tmp_path):
    from lerobot.policies.factory import get_policy_class

    policy = LerobotPolicy(SPEC, str(folder))
    policy.set_statistics(Statistics.of(obs.proprio), Statistics.of(torch.rand(50, 2) * 0.4 - 0.2))
    chunk = (torch.rand(3, policy.length, 2, generator=torch.Generator().manual_seed(0)) * 0.4 - 0.2).round(decimals=1)
    optimizer = torch.optim.Adam([p for p in policy.parameters() if p.requires_grad], 1e-3)
    losses = []
    for _ in range(25):
        torch.manual_seed(0)
        loss = policy.imitation_loss(obs, chunk)
        assert loss.shape == (3,)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        losses.append(loss.mean().item())
    assert losses[-1] < 0.8 * losses[0]

    policy.eval()
    config = {"_target_": "policies.lerobot.LerobotPolicy", "pretrained": str(folder)}
    save_policy(tmp_path / "policy", policy, config)
    moved = (tmp_path / "policy").rename(tmp_path / "moved")
    assert torch.equal(load_policy(moved).mode(obs).commands, policy.mode(obs).commands)
    kind = json.loads((moved / "config.json").read_text())["type"]
    theirs = get_policy_class(kind).from_pretrained(str(moved), strict=True)
    assert all(torch.equal(x, policy.state_dict()[name]) for name, x in theirs.state_dict().items())


def test_padding_does_not_change_the_loss(folder, obs):
    policy = LerobotPolicy(SPEC, str(folder)).eval()
    chunk = torch.rand(3, 3, 2) * 0.2
    padded = torch.tensor([[False, False, True]] * 3)
    losses = []
    for last in (0.0, 0.15):
        other = chunk.clone()
        other[:, 2] = last
        torch.manual_seed(1)
        with torch.no_grad():
            losses.append(policy.imitation_loss(obs, other, padded).mean().item())
    if json.loads((folder / "config.json").read_text())["type"] in FLOWS:
        assert losses[0] == pytest.approx(losses[1], rel=0.3)  # the network sees the noisy padding, the loss does not
    else:
        assert all(x > 0 for x in losses)


@pytest.mark.parametrize("fault", ["missing", "unknown", "shape", "no file"])
def test_a_weight_that_did_not_arrive_is_noticed(folders, tmp_path, fault):
    place = tmp_path / "copy"
    shutil.copytree(folders["act"], place)
    weights = load_file(place / "model.safetensors")
    name = "model.action_head.weight"
    if fault == "missing":
        del weights[name]
    elif fault == "unknown":
        weights["model.extra"] = torch.zeros(2)
    save_file(weights, place / "model.safetensors")
    if fault == "no file":
        (place / "model.safetensors").unlink()
    if fault == "shape":
        config = json.loads((place / "config.json").read_text())
        (place / "config.json").write_text(json.dumps({**config, "dim_feedforward": 48}))
    with pytest.raises(
        (ValueError, FileNotFoundError, RuntimeError), match=r"missing|unknown|size mismatch|has no model"
    ):
        LerobotPolicy(SPEC, str(place))


def test_another_environment_is_refused_with_both_sides(folders):
    with pytest.raises(ValueError, match=r"disagree on the cameras: it was made for \['observation.images.top'\]"):
        LerobotPolicy(SPEC, str(folders["act"]), cameras={"top": "front"})
    with pytest.raises(ValueError, match="numbers of proprio: it was made for 6, the environment has 2"):
        LerobotPolicy(PointEnv(targets_seen=False, **ENV).spec, str(folders["act"]))


def test_it_serves_as_the_base_of_a_residual(folders, obs):
    base = LerobotPolicy(SPEC, str(folders["act"]))
    policy = ResidualPolicy(SPEC, base, partial(GaussianPolicy, encoder=StateMLP, horizon=3))
    assert torch.equal(policy.mode(obs).commands, base.mode(obs).commands)


def test_a_hub_id_is_the_same_path(folders, tmp_path):
    """Installed as the hub's own cache has it; without a network."""
    place = tmp_path / "hub" / "models--lerobot--act_tiny"
    commit = "0" * 40
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    shutil.copytree(folders["act"], place / "snapshots" / commit)
    code = (
        "from policies.lerobot import LerobotPolicy; from simulators.point import PointEnv; "
        "env = PointEnv(num_envs=2, num_targets=2, image_size=64); "
        "print(LerobotPolicy(env.spec, 'lerobot/act_tiny').mode(env.reset(0)).commands.shape)"
    )
    env = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "[2, 3, 2]" in done.stdout


@pytest.mark.parametrize("kind", FLOWS)
def test_a_flow_without_chance_decides_as_before(kind, folders, obs):
    plain = LerobotPolicy(SPEC, str(folders[kind])).eval()
    flow = LerobotFlow(SPEC, str(folders[kind]), chain="ode").eval()
    torch.manual_seed(3)
    first = plain.act(obs).commands
    torch.manual_seed(3)
    torch.testing.assert_close(flow.act(obs).commands, first, atol=1e-4, rtol=1e-3)
    assert flow.act(obs).log_prob.shape == (3, 0)


@pytest.mark.parametrize("kind", FLOWS)
def test_a_flow_with_chance_scores_what_is_played(kind, folders, obs):
    policy = LerobotFlow(SPEC, str(folders[kind])).eval()
    with torch.no_grad():
        action = policy.act(obs)
        assert action.commands.shape == (3, 3, 2)
        assert action.log_prob.shape == (3, 3 * 2)
        torch.testing.assert_close(policy.log_prob(obs, action), action.log_prob, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(policy.log_prob(obs[1:2], action[1:2]), action.log_prob[1:2], atol=1e-3, rtol=1e-3)
    policy.log_prob(obs, action).sum().backward()
    learned = {n for n, p in policy.whole.policy.named_parameters() if p.grad is not None and p.grad.any()}
    assert "model.action_out_proj.weight" in learned
    assert any("vision" in n for n in learned)
    assert len(learned) > 0.7 * sum(p.requires_grad for p in policy.whole.policy.parameters())


@pytest.mark.parametrize("kind", FLOWS)
def test_a_flow_goes_on_from_the_chunk_before(kind, folders, obs):
    policy = LerobotFlow(SPEC, str(folders[kind]), chain="ode").eval()
    with torch.no_grad():
        free = policy.mode(obs).commands
        torch.testing.assert_close(policy.commands_of(policy.state_of(free)), free)
        before = free[:, :2] + 0.1
        none, some = (policy.mode_along(obs, before, torch.full((2,), w)).commands for w in (0.0, 1.0))
    assert torch.equal(none, free)
    assert ((some - free)[:, :2].mean(1) > 0.02).all()


@pytest.mark.parametrize("kind", FLOWS)
def test_pictures_and_prompt_are_read_once_per_decision(kind, folders, obs, monkeypatch):
    policy = LerobotFlow(SPEC, str(folders[kind])).eval()
    model, read = policy.whole.policy.model, []
    embed = model.embed_prefix
    monkeypatch.setattr(model, "embed_prefix", lambda *args, **told: read.append(1) or embed(*args, **told))
    with torch.no_grad():
        policy.log_prob(obs, policy.act(obs))
    assert len(read) == 2


@pytest.mark.parametrize("kind", FLOWS)
def test_a_flow_that_learned_by_reinforcement_loads_in_lerobot(kind, folders, obs, tmp_path):
    policy = LerobotFlow(SPEC, str(folders[kind])).eval()
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.01)
    save_policy(tmp_path, policy, {"_target_": "policies.lerobot_flow.LerobotFlow", "pretrained": str(folders[kind])})
    with torch.no_grad():
        torch.testing.assert_close(load_policy(tmp_path).mode(obs).commands, policy.mode(obs).commands)
        torch.testing.assert_close(LerobotPolicy(SPEC, str(tmp_path)).mode(obs).commands, policy.mode(obs).commands)


@pytest.mark.parametrize("kind", ["act", "smolvla"])
def test_a_mirrored_policy_sees_the_other_side(kind, folders, obs):
    make = LerobotFlow if kind == "smolvla" else LerobotPolicy
    plain, other = (make(SPEC, str(folders[kind]), mirrored=x).eval() for x in (False, True))
    with torch.no_grad():
        assert not torch.equal(other.mode(obs).commands, plain.mode(obs).commands)
        assert torch.equal(other.mode(mirrored(obs)).commands, plain.mode(obs).commands)


def test_a_public_policy_becomes_a_checkpoint_that_can_be_evaluated(folders, tmp_path):
    env = ["env=point", "env.num_targets=2", "env.image_size=64"]
    policy = ["policy=lerobot", f"policy.pretrained={folders['act']}", "policy.mirrored=true"]
    out, runs = tmp_path / "imported", [f"run_dir={tmp_path / name}" for name in ("import", "evaluate", "inspect")]
    told = run(import_policy.main, *env, *policy, f"out={out}", runs[0])
    assert told["command"] == str(SPEC.command)
    assert run(evaluate.main, *env, f"policy={out}", "episodes=2", "videos=0", runs[1])["n"] == 2
    assert run(inspect.main, f"checkpoint={out}", runs[2])["policy"]["mirrored"] is True
    with pytest.raises(SystemExit):
        run(import_policy.main, *env, *policy, f"out={out}", runs[0])


def test_only_flows_have_such_chains(folders):
    with pytest.raises(ValueError, match="is a policy of type act: only pi0, pi05, smolvla are flows"):
        LerobotFlow(SPEC, str(folders["act"]))
    with pytest.raises(ValueError, match="chain=sde or ode, not noise"):
        LerobotFlow(SPEC, str(folders["smolvla"]), chain="noise")
