"""LeRobot's flow policies with steps that can be scored, so that RL can improve them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from tensordict import TensorDict
from torch import Tensor, nn

from policies.flow import FlowPolicy
from policies.lerobot import FLOWS, LerobotPolicy
from vla.data.normalise import Statistics
from vla.types import EnvSpec, Observation


class LerobotFlow(FlowPolicy):
    """A flow policy of LeRobot (SmolVLA, pi0, pi0.5) with steps that can be scored, for RL (Flow-SDE of pi_RL, 2025).

    It decides as `LerobotPolicy` does but for one step in each decision, which is drawn (`chain`: sde) or not (ode).
    Only the commands that are played are scored, of the chunk and the padded numbers that it predicts. Prompt and
    pictures are read once for all steps.
    """

    def __init__(
        self,
        spec: EnvSpec,
        pretrained: str,
        horizon: int | None = None,
        cameras: Mapping[str, str] | None = None,
        chain: str = "sde",
        noise: float = 0.5,
        *,
        mirrored: bool = False,
    ):
        whole = LerobotPolicy(spec, pretrained, horizon, cameras, mirrored=mirrored)
        config = whole.policy.config
        if config.type not in FLOWS:
            flows = ", ".join(sorted(FLOWS))
            raise ValueError(f"{pretrained} is a policy of type {config.type}: only {flows} are flows")
        if chain == "noise":
            raise ValueError("LeRobot's flows can have chain=sde or ode, not noise, which needs a network of its own")
        steps = int(getattr(config, "num_steps", 0) or config.num_inference_steps)
        parts = (lambda _: _Reader(whole)), whole.horizon, (lambda *_: _Velocity(whole))
        super().__init__(spec, *parts, steps, chain, noise)
        self.whole = whole
        generator = torch.Generator().manual_seed(0)
        self.origin = torch.randn(whole.length, config.max_action_dim, generator=generator)

    def set_statistics(self, proprio: Statistics, action: Statistics) -> None:
        self.whole.set_statistics(proprio, action)

    def imitation_loss(
        self,
        obs: Observation,
        chunk: Float[Tensor, "batch horizon action"],
        padded: Bool[Tensor, "batch horizon"] | None = None,
    ) -> Float[Tensor, " batch"]:
        return self.whole.imitation_loss(obs, chunk, padded)

    def commands_of(self, state: Float[Tensor, "rows length numbers"]) -> Float[Tensor, "rows horizon action"]:
        return self.whole.after(state[:, : self.horizon, : self.spec.action_dim]).to(state.device)

    def state_of(self, commands: Float[Tensor, "rows left action"]) -> Float[Tensor, "rows left action"]:
        from lerobot.lerobot_types import TransitionKey
        from lerobot.processor import NormalizerProcessorStep

        told: Any = {TransitionKey.ACTION: commands.cpu()}
        for step in self.whole.before.steps:
            told = step(told) if isinstance(step, NormalizerProcessorStep) else told
        return told[TransitionKey.ACTION]

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """Named as LeRobot does; what is fixed is not kept."""
        return self.whole.state_dict(*args, **options)

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        return self.whole.load_state_dict(state, strict=strict, assign=assign)

    def save_beside(self, directory: Path) -> None:
        self.whole.save_beside(directory)


class _Reader:
    """Observations as the network of a flow takes them: what each of its layers remembers of pictures and prompt."""

    width = 0  # a learned noise would need features

    def __init__(self, whole: LerobotPolicy):
        self.whole = whole

    def __call__(self, obs: Observation) -> TensorDict:
        from lerobot.policies.common.vla_utils import make_att_2d_masks, prepare_attention_masks_4d

        policy = self.whole.policy
        batch = self.whole.seen(obs)
        prepare = policy.prepare_images if hasattr(policy, "prepare_images") else policy._preprocess_images
        told = batch["observation.language.tokens"], batch["observation.language.attention_mask"]
        state = {"state": policy.prepare_state(batch)} if hasattr(policy, "prepare_state") else {}
        smol = hasattr(policy.model, "vlm_with_expert")
        prompt, known, seeing = policy.model.embed_prefix(*prepare(batch), *told, **(state if smol else {}))
        mask = make_att_2d_masks(known, seeing)
        if not smol:
            mask = prepare_attention_masks_4d(mask)
            policy.model.paligemma_with_expert.paligemma.model.language_model.config._attn_implementation = "eager"
        _, memory = (policy.model.vlm_with_expert if smol else policy.model.paligemma_with_expert).forward(
            attention_mask=mask,
            position_ids=known.cumsum(1) - 1,
            past_key_values=None,
            inputs_embeds=[prompt, None],
            use_cache=True,
        )
        layers = {f"{name}_{i}": x for i, (k, v, _) in enumerate(memory) for name, x in (("keys", k), ("values", v))}
        return TensorDict({"known": known, **({} if smol else state), **layers}, [len(obs)])

    def set_statistics(self, proprio: Statistics) -> None:
        pass


class _Velocity(nn.Module):
    """That of the network at any state and time."""

    def __init__(self, whole: LerobotPolicy):
        super().__init__()
        self.model = [whole.policy.model]  # in a list, so that its weights are not named twice

    def forward(
        self, noisy: Float[Tensor, "rows length numbers"], time: Float[Tensor, " rows"], read: TensorDict
    ) -> Float[Tensor, "rows length numbers"]:
        from transformers import DynamicCache

        known, *rest = (read[x] for x in ("known", "state") if x in read.keys())  # noqa: SIM118 -- not a dict
        count = sum(str(name).startswith("keys_") for name in read.keys())  # noqa: SIM118
        memory = DynamicCache([(read[f"keys_{i}"], read[f"values_{i}"]) for i in range(count)])
        return self.model[0].denoise_step(*rest, known, memory, noisy, time).float()
