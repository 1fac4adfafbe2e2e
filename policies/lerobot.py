"""LeRobot's policies (ACT, Diffusion, SmolVLA, pi0, pi0.5) behind our interface, loaded and saved as LeRobot does."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from safetensors import safe_open
from tensordict import TensorDict
from torch import Tensor, nn

from policies.adapters import mirrored as flip
from vla.data.normalise import Statistics
from vla.models.hub import folder_of
from vla.types import Action, EnvSpec, Observation

FILES = ["*.json", "*.safetensors"]
FLOWS = {"smolvla", "pi0", "pi05"}
WEIGHTS = "model.safetensors"


class LerobotPolicy(nn.Module):
    """The policy of a hub id or folder `pretrained`, with the processors saved beside it.

    Its camera features are called as ours (`observation.images.<camera>`), or `cameras` says which of ours is which of
    its own; it sees pictures as they are, or `mirrored`. Of the chunk it predicts the first `horizon` commands are
    played; null: as many as it says itself. Its normalisation is that of its processors, until `set_statistics`.
    ValueError where its features are not the environment's, or where a weight of the file did not reach the model: some
    of LeRobot's loaders go on silently.

    The weights are named as in its own file, so that a checkpoint of ours is also one of LeRobot's.
    """

    def __init__(
        self,
        spec: EnvSpec,
        pretrained: str,
        horizon: int | None = None,
        cameras: Mapping[str, str] | None = None,
        *,
        mirrored: bool = False,
    ):
        super().__init__()
        self.mirrored = mirrored
        self.spec = spec
        self.folder = folder_of(pretrained, FILES)
        self.policy, self.before, self.after = load(self.folder)
        config = self.policy.config
        self.cameras = {ours: f"observation.images.{theirs}" for ours, theirs in _names(spec, cameras).items()}
        _require_features(spec, config, set(self.cameras.values()), pretrained)
        self.lead = config.n_obs_steps - 1 if config.type == "diffusion" else 0  # commands before the present one
        self.length = int(getattr(config, "chunk_size", 0) or getattr(config, "horizon", 1)) - self.lead
        self.horizon = min(horizon or config.n_action_steps, config.n_action_steps)
        self.seed = torch.Generator().manual_seed(0)

    def set_statistics(self, proprio: Statistics, action: Statistics) -> None:
        """Normalise by these from now on."""
        told = {"observation.state": proprio, "action": action}
        names = {"mean": "mean", "std": "std", "low": "min", "high": "max", "q01": "q01", "q99": "q99"}
        stats = {
            feature: {theirs: getattr(x, ours).clone() for ours, theirs in names.items()} for feature, x in told.items()
        }
        for step in (*self.before.steps, *self.after.steps):
            if hasattr(step, "stats"):
                step.stats = {**(step.stats or {}), **stats}
                step.__post_init__()

    def act(self, obs: Observation) -> Action:
        return self._decide(obs, {})

    def mode(self, obs: Observation) -> Action:
        """From a noise that is always the same, where there is noise."""
        rows = obs.reshape(-1)
        size = int(getattr(self.policy.config, "max_action_dim", self.spec.action_dim))
        noise = torch.randn(1, self.lead + self.length, size, generator=self.seed.manual_seed(0)).expand(
            len(rows), -1, -1
        )
        told = {"noise": noise.contiguous()} if self.policy.config.type in FLOWS | {"diffusion"} else {}
        return self._decide(obs, told)

    def imitation_loss(
        self,
        obs: Observation,
        chunk: Float[Tensor, "batch horizon action"],
        padded: Bool[Tensor, "batch horizon"] | None = None,
    ) -> Float[Tensor, " batch"]:
        """LeRobot's own loss of the policy, the same for every row where it does not tell them apart.

        Chunks shorter than its own are lengthened by padding.
        """
        missing = self.length - chunk.shape[1]
        if missing < 0:
            raise ValueError(f"the policy's chunks have {self.length} commands, got {chunk.shape[1]}")
        padded = torch.zeros(chunk.shape[:2], dtype=torch.bool) if padded is None else padded
        before, behind = (torch.ones(len(chunk), count, dtype=torch.bool) for count in (self.lead, missing))
        ends = chunk[:, :1].expand(-1, self.lead, -1), chunk[:, -1:].expand(-1, missing, -1)
        told = {
            "action": torch.cat([ends[0], chunk, ends[1]], 1),
            "action_is_pad": torch.cat([before, padded.cpu(), behind], 1),
        }
        if self.policy.config.type == "diffusion":
            self.policy.config.do_mask_loss_for_padding = True
        batch = self.seen(obs, told)
        each = {"reduction": "none"} if self.policy.config.type in FLOWS else {}
        loss, _ = self.policy.forward(batch, **each)
        return loss.expand(len(chunk))

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """Named as LeRobot does."""
        return self.policy.state_dict(*args, **options)

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        return self.policy.load_state_dict(state, strict=strict, assign=assign)

    def save_beside(self, directory: Path) -> None:
        """What LeRobot keeps beside the weights."""
        self.policy.config.save_pretrained(directory)
        self.before.save_pretrained(directory)
        self.after.save_pretrained(directory)

    def _decide(self, obs: Observation, told: Mapping[str, Tensor]) -> Action:
        rows = obs.reshape(-1)
        self.policy.reset()
        with torch.no_grad():
            chunk = self.after(self.policy.predict_action_chunk(self.seen(rows), **told))
        commands = chunk[:, : self.horizon].to(obs.proprio).reshape(*obs.batch_size, self.horizon, -1)
        return Action(
            commands=commands,
            log_prob=commands.new_zeros(*obs.batch_size, 0),
            latent=TensorDict({}, obs.batch_size),
            batch_size=obs.batch_size,
        )

    def seen(self, obs: Observation, told: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
        """As the policy takes it; where it wants earlier observations, this one stands for them."""
        batch = self.before(self._batch(obs) | dict(told or {}))
        if self.policy.config.type == "diffusion":
            past = [*self.policy.config.image_features, "observation.state"]
            batch |= {name: torch.stack([batch[name]] * (self.lead + 1), 1) for name in past}
        device = next(self.policy.parameters()).device
        return {name: x.to(device) if isinstance(x, Tensor) else x for name, x in batch.items()}

    def _batch(self, obs: Observation) -> dict[str, Any]:
        obs = flip(obs) if self.mirrored else obs
        pictures = {theirs: obs.images[ours].permute(0, 3, 1, 2).float() / 255 for ours, theirs in self.cameras.items()}
        return {**pictures, "observation.state": obs.proprio, "task": list(obs.instruction)}


def load(folder: Path) -> tuple[Any, Any, Any]:
    """The policy of a folder and what is done to its batches before and to its actions after."""
    from lerobot.configs.policies import PreTrainedConfig  # many seconds to import
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    if not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(f"{folder} has no {WEIGHTS}: it is not a checkpoint of a LeRobot policy")
    config = PreTrainedConfig.from_pretrained(str(folder))
    config.device = "cpu"
    policy = get_policy_class(config.type).from_pretrained(str(folder), config=config)
    require_loaded(policy, folder / WEIGHTS)
    device = {"device_processor": {"device": "cpu"}}
    before, after = make_pre_post_processors(
        config, pretrained_path=str(folder), preprocessor_overrides=device, postprocessor_overrides=device
    )
    return policy.float(), before, after


def require_loaded(policy: nn.Module, file: Path) -> None:
    """ValueError unless every weight of the model is that of the file, and the file has no other."""
    model = policy.state_dict()
    stored: set[int] = set()
    unknown, differing = [], []
    with safe_open(file, "pt") as weights:
        for name in weights.keys():  # noqa: SIM118 -- a file, not a dict
            ours = name if name in model else f"model.{name}"
            if ours not in model:
                unknown.append(name)
                continue
            theirs = weights.get_tensor(name)
            stored.add(model[ours].data_ptr())
            if theirs.shape != model[ours].shape or not torch.equal(theirs.to(model[ours].dtype), model[ours]):
                differing.append(name)
    missing = [name for name, x in model.items() if x.data_ptr() not in stored and x.numel()]
    if missing or unknown or differing:
        told = {"missing": missing, "unknown": unknown, "not taken over": differing}
        said = "; ".join(f"{len(names)} {what} ({', '.join(names[:3])} ...)" for what, names in told.items() if names)
        raise ValueError(f"{file} does not fit the policy its config.json describes: weights {said}")


def _names(spec: EnvSpec, cameras: Mapping[str, str] | None) -> dict[str, str]:
    return {camera.name: camera.name for camera in spec.cameras} if cameras is None else dict(cameras)


def _require_features(spec: EnvSpec, config: Any, cameras: set[str], pretrained: str) -> None:
    wanted = set(config.image_features)
    state = config.input_features.get("observation.state")
    sides = {
        "cameras": (sorted(wanted), sorted(cameras)),
        "numbers of proprio": (state.shape[0] if state else None, spec.proprio_dim if state else None),
        "numbers of a command": (config.output_features["action"].shape[0], spec.action_dim),
    }
    for what, (theirs, ours) in sides.items():
        if theirs != ours:
            raise ValueError(
                f"{pretrained} and the environment disagree on the {what}: it was made for {theirs}, the environment "
                f"has {ours}. Name its cameras by `cameras`, or train a policy for this environment."
            )
