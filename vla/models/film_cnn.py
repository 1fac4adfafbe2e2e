"""A small convolutional encoder that listens to the instruction, trained from scratch in minutes on a CPU."""

import itertools

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from vla.data.normalise import Statistics
from vla.models.normaliser import Normaliser
from vla.models.text import TextEncoder
from vla.types import Camera, EnvSpec, Observation


class FilmCNN(nn.Module):
    """Cameras (each with its own convolutions, in the order of the spec), instruction and proprio as one vector.

    The instruction scales and shifts the channels of every stage but the first (FiLM, Perez et al. 2018), so one
    network can look for whatever is named.
    """

    def __init__(
        self,
        spec: EnvSpec,
        width: int = 256,
        channels: tuple[int, ...] = (16, 32, 64),
        text_width: int = 64,
        camera_width: int = 128,
        proprio_width: int = 64,
    ):
        super().__init__()
        self.width = width
        self.cameras = [camera.name for camera in spec.cameras]
        self.text = TextEncoder(text_width)
        self.eyes = nn.ModuleList(_Eye(camera, tuple(channels), text_width, camera_width) for camera in spec.cameras)
        self.normaliser = Normaliser(spec.proprio_dim)
        self.body = nn.Sequential(nn.Linear(spec.proprio_dim, proprio_width), nn.SiLU())
        self.mix = nn.Sequential(
            nn.Linear(len(self.cameras) * camera_width + proprio_width + text_width, width), nn.SiLU()
        )

    def set_statistics(self, proprio: Statistics) -> None:
        self.normaliser.set(proprio.mean, proprio.std)

    def forward(self, obs: Observation) -> Float[Tensor, "batch width"]:
        text = self.text(obs.instruction)
        seen = [eye(obs.images[name], text) for name, eye in zip(self.cameras, self.eyes, strict=True)]
        return self.mix(torch.cat([*seen, self.body(self.normaliser(obs.proprio)), text], -1))


class _Eye(nn.Module):
    """One camera: strided convolutions, read out twice, as where each channel is brightest and as a coarse map."""

    def __init__(self, camera: Camera, channels: tuple[int, ...], text_width: int, width: int):
        super().__init__()
        sizes = [(camera.height, camera.width)]
        for _ in channels:
            sizes.append(tuple((n + 1) // 2 for n in sizes[-1]))
        self.first = _PlacedConv(3, channels[0], 5, sizes[0])
        self.stages = nn.ModuleList(
            _FilmStage(before, after, text_width, size)
            for (before, after), size in zip(itertools.pairwise(channels), sizes[1:], strict=False)
        )
        rows, columns = sizes[-1]
        self.register_buffer("grid", _coordinates(rows, columns).flatten(1).T, persistent=False)
        self.squeeze = nn.Conv2d(channels[-1], 16, 1)
        self.out = nn.Sequential(nn.Linear(2 * channels[-1] + 16 * rows * columns, width), nn.SiLU())

    def forward(
        self, pictures: UInt8[Tensor, "batch height width 3"], text: Float[Tensor, "batch text"]
    ) -> Float[Tensor, "batch features"]:
        x = (
            pictures.permute(0, 3, 1, 2).float() / 127.5 - 1
        )  # channels last in memory, which convolutions like on a CPU
        x = nn.functional.relu(self.first(x))
        for stage in self.stages:
            x = stage(x, text)
        peaks = (x.flatten(2).softmax(-1) @ self.grid).flatten(1)  # spatial softmax (Levine et al. 2016)
        return self.out(torch.cat([peaks, nn.functional.silu(self.squeeze(x)).flatten(1)], -1))


class _FilmStage(nn.Module):
    """A convolution whose channels the instruction scales and shifts."""

    def __init__(self, before: int, after: int, text_width: int, size: tuple[int, int]):
        super().__init__()
        self.conv = _PlacedConv(before, after, 3, size)
        self.film = nn.Linear(text_width, 2 * after)

    def forward(
        self, x: Float[Tensor, "batch channel row column"], text: Float[Tensor, "batch text"]
    ) -> Float[Tensor, "batch channel row column"]:
        scale, shift = self.film(text)[..., None, None].chunk(2, 1)
        return nn.functional.relu(torch.addcmul(shift, self.conv(x), 1 + scale))


class _PlacedConv(nn.Module):
    """A convolution of stride 2 over a map of `size` that knows where it is, then normalised.

    Coordinates are the same for every picture, so their part of the convolution is done once per batch.
    """

    def __init__(self, before: int, after: int, kernel: int, size: tuple[int, int]):
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel, stride=2, padding=kernel // 2, bias=False)
        self.where = nn.Conv2d(2, after, kernel, stride=2, padding=kernel // 2)
        self.norm = nn.GroupNorm(after // 8, after)
        self.register_buffer("place", _coordinates(*size)[None], persistent=False)

    def forward(self, x: Float[Tensor, "batch channel row column"]) -> Float[Tensor, "batch channel row column"]:
        return self.norm(self.conv(x) + self.where(self.place))


def _coordinates(rows: int, columns: int) -> Float[Tensor, "2 row column"]:
    """Each pixel's row and column from -1 to 1."""
    return torch.stack(torch.meshgrid(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns), indexing="ij"))
