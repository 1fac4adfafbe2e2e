"""What OpenVLA-OFT (Kim et al. 2025) adds to OpenVLA for regression: commands out of hidden states, proprio into them.

Each comes in a file of its own, `action_head--<step>_checkpoint.pt` and `proprio_projector--<step>_checkpoint.pt`.
"""

import re
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, relu


class L1Head(nn.Module):
    """One command from the states of its tokens side by side; names are those of the public files."""

    def __init__(self, width: int, action_dim: int, blocks: int = 2):
        super().__init__()
        self.model = nn.ModuleDict(
            {
                "layer_norm1": nn.LayerNorm(width * action_dim),
                "fc1": nn.Linear(width * action_dim, width),
                "mlp_resnet_blocks": nn.ModuleList(_Block(width) for _ in range(blocks)),
                "layer_norm2": nn.LayerNorm(width),
                "fc2": nn.Linear(width, action_dim),
            }
        )

    def forward(self, states: Float[Tensor, "batch horizon features"]) -> Float[Tensor, "batch horizon action"]:
        x = relu(self.model["fc1"](self.model["layer_norm1"](states)))
        for block in self.model["mlp_resnet_blocks"]:  # type: ignore[attr-defined]
            x = block(x)
        return self.model["fc2"](self.model["layer_norm2"](x))


class ProprioProjector(nn.Module):
    """Proprio as one more embedding of the prompt."""

    def __init__(self, width: int, proprio_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(proprio_dim, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, proprio: Float[Tensor, "batch proprio"]) -> Float[Tensor, "batch width"]:
        return self.fc2(gelu(self.fc1(proprio)))


def load_part(module: nn.Module, folder: Path, name: str) -> None:
    """Fill `module` from the file `<name>--<step>_checkpoint.pt` of the highest step.

    FileNotFoundError where there is none; ValueError naming the keys if it holds anything else.
    """
    files = {int(m[1]): x for x in folder.glob(f"{name}--*.pt") if (m := re.search(r"--(\d+)_checkpoint$", x.stem))}
    if not files:
        raise FileNotFoundError(
            f"{folder} has no {name}--<step>_checkpoint.pt: it is no checkpoint for regression. With fresh=true a new "
            "one begins, which must be trained"
        )
    file = files[max(files)]
    there = {k.removeprefix("module."): x for k, x in torch.load(file, map_location="cpu", weights_only=True).items()}
    own = module.state_dict()
    odd = sorted((own.keys() ^ there.keys()) | {k for k in own.keys() & there.keys() if own[k].shape != there[k].shape})
    if odd:
        raise ValueError(
            f"{file} is not a {name} of this model: {', '.join(odd[:3])} missing, unknown or of other size"
        )
    module.load_state_dict(there, assign=True)


class _Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        return x + self.ffn(x)
