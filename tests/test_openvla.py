"""OpenVLA's checkpoints: a tiny one with the public names and files, and the names of the public one of 7 billion."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from policies.openvla import OpenVlaPolicy
from policies.openvla_l1 import OpenVlaL1Policy
from simulators.point import PointEnv
from vla.checkpoint import load_policy, save_policy
from vla.models.openvla import OpenVla, Projector, Towers, public_name
from vla.types import Camera, Command, EnvSpec, Observation

NAMES = Path(__file__).parent / "openvla_7b_names.txt"
SPEC = EnvSpec(1, 20.0, 50, (Camera("agentview", 40, 40),), (("x", 1),), Command("ee_delta", 7, 0.05, 0.5))
SMALL = [{"embed_dim": 32, "depth": 3, "num_heads": 4}, {"embed_dim": 48, "depth": 3, "num_heads": 4}]
SETTINGS = {
    "model_type": "openvla",
    "architectures": ["OpenVLAForActionPrediction"],
    "auto_map": {"AutoConfig": "configuration_prismatic.OpenVLAConfig"},
    "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
    "timm_override_act_layers": [None, None],
    "image_sizes": [28, 28],
    "pad_to_multiple_of": 64,
    "timm_options": SMALL,
    "text_config": {
        "model_type": "llama", "vocab_size": 32064, "pad_token_id": 32000, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4,
    },
    "norm_stats": {
        "toy": {
            "action": {
                "q01": [-0.9] * 6 + [0.0], "q99": [0.8] * 6 + [1.0], "mask": [True] * 6 + [False],
            }
        }
    },
}  # fmt: skip


def tokenizer() -> PreTrainedTokenizerFast:
    """Llama's special tokens and bytes; no text makes its last tokens."""
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer, pieces.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pieces.train_from_iterator(["In: What action should the robot take to"], trainer)
    pieces.add_special_tokens([AddedToken(x, special=True) for x in special])
    return PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Weights in two shards, as on the hub."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("openvla")
    (place / "config.json").write_text(json.dumps(SETTINGS))
    tokenizer().save_pretrained(place)
    towers, llama = Towers(SETTINGS), LlamaForCausalLM(LlamaConfig(**SETTINGS["text_config"]))
    parts = {"vision_backbone": towers, "projector": Projector(towers.width, 32), "language_model": llama}
    weights = {
        public_name(f"{part}.{name}"): x.clone() for part, m in parts.items() for name, x in m.state_dict().items()
    }
    names = sorted(weights)
    for i, some in enumerate((names[: len(names) // 2], names[len(names) // 2 :])):
        save_file({name: weights[name] for name in some}, place / f"model-0000{i + 1}-of-00002.safetensors")
    return place


@pytest.fixture(params=[1, 2], ids=["one by one", "parallel"])
def policy(request, folder) -> OpenVlaPolicy:
    return OpenVlaPolicy(SPEC, partial(OpenVla, pretrained=str(folder)), request.param, "toy").eval()


@pytest.fixture
def obs():
    pictures = torch.randint(256, (3, 40, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    said = ["Open the drawer", "put the very small black bowl on the plate", "stop"]
    env = PointEnv(num_envs=3, image_size=40).reset(0)
    return Observation(
        images=env.images.__class__({"agentview": pictures}, [3]),
        proprio=torch.zeros(3, 1),
        instruction=said,
        batch_size=[3],
    )


def test_scoring_a_decision_gives_the_probability_it_was_made_with(policy, obs):
    with torch.no_grad():
        for action in (policy.act(obs), policy.mode(obs)):
            torch.testing.assert_close(policy.log_prob(obs, action), action.log_prob, atol=1e-4, rtol=1e-4)
            assert action.commands.shape == (3, policy.horizon, 7)


def test_decisions_do_not_depend_on_the_rest_of_the_batch(policy, obs):
    with torch.no_grad():
        action = policy.act(obs)
        for i in range(3):
            alone = policy.log_prob(obs[i : i + 1], action[i : i + 1])
            torch.testing.assert_close(alone, action.log_prob[i : i + 1], atol=2e-4, rtol=1e-3)


def test_greedy_tokens_are_those_of_transformers_own_generate(folder, obs):
    policy = OpenVlaPolicy(SPEC, partial(OpenVla, pretrained=str(folder)), 1, "toy").eval()
    only = policy.words.action_ids.tolist()
    with torch.no_grad():
        written = policy.words.language_model.generate(
            **policy._read(obs),
            max_new_tokens=7,
            min_new_tokens=7,
            do_sample=False,
            prefix_allowed_tokens_fn=lambda row, ids: only,
        )
        assert torch.equal(policy.words.action_ids[policy.mode(obs).latent["tokens"]], written)


def test_tokens_mean_what_they_mean_in_public_checkpoints(policy):
    """Their code: 256 edges from -1 to 1, 255 centres, token 32000 - d; q01 to q99 but for the gripper."""
    edges = torch.linspace(-1, 1, 256)
    centres = (edges[:-1] + edges[1:]) / 2
    ids = policy.words.action_ids
    assert ids[[0, 254, 255]].tolist() == [31999, 31745, 31744]
    for token in (0, 17, 254, 255):
        theirs = centres[min(32000 - int(ids[token]) - 1, 254)]
        arm = (0.5 * (theirs + 1) * 1.7 - 0.9) * torch.tensor([0.05] * 3 + [0.5] * 3)
        ours = policy.bins.decode(torch.full((7,), token))
        torch.testing.assert_close(ours[:6], arm, atol=1e-6, rtol=1e-5)
        assert ours[6].item() == pytest.approx(theirs.item(), abs=1e-6)
    commands = policy.bins.decode(torch.arange(255)[:, None].expand(-1, 7))
    assert torch.equal(policy.bins.encode(commands), torch.arange(255)[:, None].expand(-1, 7))


def test_all_see_all_in_parallel_and_only_what_is_before_one_by_one(folder, obs):
    parallel = OpenVla(256, str(folder))
    prompt = parallel.read(obs, [""] * 3)
    other = {**prompt, "inputs_embeds": prompt["inputs_embeds"].clone()}
    with torch.no_grad():
        first, second = parallel.parallel(prompt, 7), parallel.parallel(prompt, 14)
        assert not torch.allclose(first, second[:, :7], atol=1e-5)  # more places behind change those before
        tokens = torch.zeros(3, 7, dtype=torch.long)
        changed = tokens.clone()
        changed[:, 3] = 9
        a, b = parallel.after(other, tokens), parallel.after(other, changed)
    torch.testing.assert_close(a[:, :4], b[:, :4], atol=1e-5, rtol=1e-5)
    assert ((a - b)[:, 4:].abs().amax(-1) > 1e-6).all()


def test_the_picture_and_the_sentence_are_seen(policy, obs):
    other = obs.clone()
    other.images["agentview"] = 255 - other.images["agentview"]
    said = obs.clone()
    said.instruction = ["close the drawer"] * 3
    with torch.no_grad():
        tokens = policy.mode(obs).latent["tokens"]
        before = policy.distribution(obs, tokens)
        assert (policy.distribution(other, tokens) - before).abs().max() > 1e-4
        assert (policy.distribution(said, tokens) - before).abs().max() > 1e-4


def test_pictures_are_normalised_as_each_tower_was_trained(folder, obs):
    words = OpenVla(256, str(folder))
    obs.images["agentview"] = torch.full_like(obs.images["agentview"], 255)
    seen = words._pictures(obs)
    assert seen.shape == (3, 6, 28, 28)
    assert seen[0, 0].mean().item() == pytest.approx((1 - 0.484375) / 0.228515625, rel=1e-4)
    assert seen[0, 3:].unique().tolist() == pytest.approx([1.0])


@pytest.mark.parametrize("fault", ["missing", "unknown", "no weights"])
def test_weights_that_are_not_all_there_are_refused(folder, tmp_path, fault):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    shard = tmp_path / "model-00001-of-00002.safetensors"
    weights = load_file(shard)
    if fault == "missing":
        weights.pop(sorted(weights)[0])
    weights |= {"lm.extra": torch.zeros(1)} if fault == "unknown" else {}
    save_file(weights, shard)
    if fault == "no weights":
        for path in tmp_path.glob("*.safetensors"):
            path.unlink()
    said = {"missing": "1 are missing", "unknown": "1 are unknown (lm.extra", "no weights": "has no weights"}[fault]
    with pytest.raises((ValueError, FileNotFoundError), match=said.replace("(", r"\(")):
        OpenVla(256, str(tmp_path))


def test_statistics_of_another_dataset_are_not_made_up(folder):
    with pytest.raises(ValueError, match="no statistics of 'bridge_orig', only of toy"):
        OpenVlaPolicy(SPEC, partial(OpenVla, pretrained=str(folder)), 1, "bridge_orig")


def test_a_checkpoint_needs_nothing_but_itself(policy, folder, obs, tmp_path):
    words = {"_target_": "vla.models.openvla.OpenVla", "_partial_": True, "pretrained": str(folder)}
    config = {"_target_": "policies.openvla.OpenVlaPolicy", "horizon": policy.horizon, "dataset": "toy", "words": words}
    save_policy(tmp_path / "policy", policy, config)
    loaded = load_policy((tmp_path / "policy").rename(tmp_path / "moved"))
    with torch.no_grad():
        assert torch.equal(loaded.mode(obs).commands, policy.mode(obs).commands)


def test_our_names_are_those_of_the_checkpoint_of_seven_billion():
    settings = {**SETTINGS, "image_sizes": [224, 224], "timm_options": [{}, {}]}
    with torch.device("meta"):
        towers = Towers(settings)
        llama = LlamaForCausalLM(LlamaConfig(vocab_size=32064, pad_token_id=32000))
        parts = {"vision_backbone": towers, "projector": Projector(towers.width, 4096), "language_model": llama}
    named = {
        f"{public_name(f'{part}.{name}')} {'x'.join(map(str, x.shape))}"
        for part, module in parts.items()
        for name, x in module.state_dict().items()
    }
    assert sum(x.numel() for module in parts.values() for x in module.parameters()) == 7_541_237_184
    assert named == expanded(NAMES.read_text())


def expanded(text: str) -> set[str]:
    """One line per name and shape; {0-23} stands for all numbers from 0 to 23."""
    lines: set[str] = set()
    for line in text.splitlines():
        before, brace, rest = line.partition("{")
        if not brace:
            lines.add(line)
            continue
        numbers, _, after = rest.partition("}")
        first, last = map(int, numbers.split("-"))
        lines |= {f"{before}{i}{after}" for i in range(first, last + 1)}
    return lines


def test_patches_are_those_before_the_last_block_and_not_normalised(folder):
    eyes = OpenVla(256, str(folder)).vision_backbone
    picture = torch.randn(1, 6, 28, 28)
    with torch.no_grad():
        before = eyes(picture)
        assert before.shape == (1, 4, 32 + 48)  # 2 x 2 patches of 14 pixels, no other tokens
        for tower in (eyes.featurizer, eyes.fused_featurizer):
            for unused in (tower.blocks[-1], tower.norm):
                for p in unused.parameters():
                    p.add_(torch.randn_like(p))
        assert torch.equal(eyes(picture), before)
        eyes.fused_featurizer.blocks[-2].norm1.weight.add_(1)
        assert not torch.allclose(eyes(picture), before)


def test_a_place_in_parallel_is_read_at_the_one_before_it(folder, obs):
    """OFT's sequence, put together by hand: first token, pictures, sentence, empty places, end; nothing is hidden."""
    words = OpenVla(256, str(folder))
    prompt = words.read(obs[:1], [""])
    embed = words.language_model.get_input_embeddings()
    whole = torch.cat([prompt["inputs_embeds"], torch.zeros(1, 7, 32), embed(torch.tensor([[2]]))], 1)
    size = whole.shape[1]
    with torch.no_grad():
        logits = words.language_model(
            inputs_embeds=whole, attention_mask=torch.zeros(1, 1, size, size), position_ids=torch.arange(size)[None]
        ).logits
        ours = words.parallel(prompt, 7)
    last = prompt["inputs_embeds"].shape[1] - 1
    torch.testing.assert_close(ours, logits[:, last : last + 7, 31744:32000].flip(-1), atol=1e-5, rtol=1e-4)


OFT_HEAD = [
    *("layer_norm1.weight 224", "layer_norm1.bias 224", "fc1.weight 32x224", "fc1.bias 32"),
    *("layer_norm2.weight 32", "layer_norm2.bias 32", "fc2.weight 7x32", "fc2.bias 7"),
] + [
    f"mlp_resnet_blocks.{i}.ffn.{j}.{name} {size}"
    for i in (0, 1)
    for j, name, size in ((0, "weight", "32"), (0, "bias", "32"), (1, "weight", "32x32"), (1, "bias", "32"))
]
TOLD = tuple({"position": 3, "rotation": 6, "gripper": 1, "base_position": 3}.items())
CAMERA = (Camera("agentview", 40, 40),)
OFT_SPEC = EnvSpec(1, 20.0, 50, CAMERA, TOLD, Command("ee_delta", 7, 0.05, 0.5))


@pytest.fixture(scope="module")
def oft(folder, tmp_path_factory) -> Path:
    """The checkpoint with the files of a regression beside it, written as their trainer names things."""
    place = tmp_path_factory.mktemp("oft")
    for path in folder.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    generator = torch.Generator().manual_seed(3)
    told = dict(line.split() for line in OFT_HEAD)
    sizes = {f"module.model.{name}": [int(n) for n in size.split("x")] for name, size in told.items()}
    torch.save(
        {k: torch.randn(n, generator=generator) * 0.3 for k, n in sizes.items()},
        place / "action_head--150000_checkpoint.pt",
    )
    torch.save({"module.model.old": torch.zeros(1)}, place / "action_head--50000_checkpoint.pt")
    sizes = {
        "module.fc1.weight": [32, 8],
        "module.fc1.bias": [32],
        "module.fc2.weight": [32, 32],
        "module.fc2.bias": [32],
    }
    torch.save(
        {k: torch.randn(n, generator=generator) for k, n in sizes.items()},
        place / "proprio_projector--150000_checkpoint.pt",
    )
    proprio = {"q01": [-0.5] * 3 + [2.0, -1, -1, 0, -0.04], "q99": [0.2, 0.3, 1.4, 4.0, 1, 1, 0.04, 0]}
    known = {"toy": {**SETTINGS["norm_stats"]["toy"], "proprio": proprio}}
    (place / "dataset_statistics.json").write_text(json.dumps(known))
    return place


@pytest.fixture
def regressing(oft) -> OpenVlaL1Policy:
    return OpenVlaL1Policy(OFT_SPEC, partial(OpenVla, pretrained=str(oft)), "toy", horizon=2).eval()


@pytest.fixture
def arm_obs(obs):
    down = torch.tensor([0.4, 0.1, 0.2, 1, 0, 0, 0, -1, 0, 0.5, -0.6, 0.0, 0.9])
    return obs.replace(proprio=down.expand(3, -1) + 0.01 * torch.arange(3)[:, None] * torch.eye(13)[0])


def test_a_regression_is_computed_as_in_its_public_code(regressing, oft, arm_obs):
    """Put together by hand from the files: proprio behind the pictures, states side by side, two residual blocks."""
    words = regressing.words
    head = {k[13:]: x for k, x in torch.load(oft / "action_head--150000_checkpoint.pt").items()}
    told = {k[7:]: x for k, x in torch.load(oft / "proprio_projector--150000_checkpoint.pt").items()}
    layer = torch.nn.functional
    with torch.no_grad():
        ours = regressing.mode(arm_obs[:1]).commands[0]
        state = torch.tensor([-0.2, 0.1, 1.1, torch.pi, 0, 0, 0.02, -0.02])
        low, high = regressing.proprio_range.low, regressing.proprio_range.high
        state = (2 * (state - low) / (high - low + 1e-8) - 1).clamp(-1, 1)
        state = layer.gelu(state @ told["fc1.weight"].T + told["fc1.bias"]) @ told["fc2.weight"].T + told["fc2.bias"]
        prompt = words.read(arm_obs[:1], [""])["inputs_embeds"]
        embed = words.language_model.get_input_embeddings()
        pictures = 1 + 4  # the first token, then 2 x 2 patches
        before, after = prompt[:, :pictures], prompt[:, pictures:]
        whole = torch.cat([before, state[None, None], after, torch.zeros(1, 14, 32), embed(torch.tensor([[2]]))], 1)
        size = whole.shape[1]
        states = words.language_model.model(
            inputs_embeds=whole, attention_mask=torch.zeros(1, 1, size, size), position_ids=torch.arange(size)[None]
        ).last_hidden_state[0, size - 16 : size - 2]
        x = layer.layer_norm(states.reshape(2, -1), [224], head["layer_norm1.weight"], head["layer_norm1.bias"])
        x = (x @ head["fc1.weight"].T + head["fc1.bias"]).relu()
        for i in (0, 1):
            name = f"mlp_resnet_blocks.{i}.ffn"
            y = layer.layer_norm(x, [32], head[f"{name}.0.weight"], head[f"{name}.0.bias"])
            x = x + (y @ head[f"{name}.1.weight"].T + head[f"{name}.1.bias"]).relu()
        x = layer.layer_norm(x, [32], head["layer_norm2.weight"], head["layer_norm2.bias"])
        x = x @ head["fc2.weight"].T + head["fc2.bias"]
    arm = (0.5 * (x[:, :6] + 1) * (1.7 + 1e-8) - 0.9) * torch.tensor([0.05] * 3 + [0.5] * 3)
    torch.testing.assert_close(ours[:, :6], arm, atol=1e-5, rtol=1e-4)
    assert torch.equal(ours[:, 6], (x[:, 6] > 0.5).float())


def test_a_regression_learns_and_needs_nothing_but_its_checkpoint(regressing, oft, arm_obs, tmp_path):
    chunk = torch.rand(3, 2, 7, generator=torch.Generator().manual_seed(0)) * 0.02
    descent = torch.optim.Adam(regressing.parameters(), 1e-3)
    losses = []
    for _ in range(30):
        loss = regressing.imitation_loss(arm_obs, chunk).mean()
        descent.zero_grad()
        loss.backward()
        descent.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    words = {"_target_": "vla.models.openvla.OpenVla", "_partial_": True, "pretrained": str(oft)}
    config = {"_target_": "policies.openvla_l1.OpenVlaL1Policy", "horizon": 2, "dataset": "toy", "words": words}
    save_policy(tmp_path / "policy", regressing, config)
    loaded = load_policy((tmp_path / "policy").rename(tmp_path / "moved"))
    with torch.no_grad():
        assert torch.equal(loaded.mode(arm_obs).commands, regressing.mode(arm_obs).commands)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("no head", "no action_head--<step>_checkpoint.pt.*fresh=true"),
        ("other size", "is not a action_head of this model: model.fc2.bias"),
        ("no base", "base_position.*env.base=true"),
    ],
)
def test_what_is_no_regression_is_refused(oft, tmp_path, fault, said):
    for path in oft.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    head = tmp_path / "action_head--150000_checkpoint.pt"
    weights = torch.load(head)
    for path in tmp_path.glob("action_head*"):
        path.unlink()
    if fault != "no head":
        torch.save({**weights, **({"module.model.fc2.bias": torch.zeros(8)} if fault == "other size" else {})}, head)
    spec = replace(OFT_SPEC, proprio=TOLD[:3]) if fault == "no base" else OFT_SPEC
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        OpenVlaL1Policy(spec, partial(OpenVla, pretrained=str(tmp_path)), "toy", horizon=2)


def test_new_heads_begin_on_a_checkpoint_of_tokens(folder, oft, arm_obs):
    policy = OpenVlaL1Policy(OFT_SPEC, partial(OpenVla, pretrained=str(folder)), "toy", 2, proprio=False, fresh=True)
    assert policy.mode(arm_obs).commands.shape == (3, 2, 7)
