"""A small convolutional encoder that listens to the instruction: minutes of training on a CPU, no pretrained weights."""

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

    The instruction scales and shifts the channels of every stage (FiLM, Perez et al. 2018), so one network can look
    for whatever is named.
    """

    def __init__(
        self,
        spec: EnvSpec,
        width: int = 256,
        channels: tuple[int, ...] = (24, 48, 64),
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
        self.place = _coordinates(camera.height, camera.width)
        sizes = [5, *channels]  # red, green, blue, row, column
        self.stages = nn.ModuleList(
            _FilmStage(a, b, 5 if i == 0 else 3, text_width) for i, (a, b) in enumerate(itertools.pairwise(sizes))
        )
        rows, columns = camera.height, camera.width
        for _ in channels:
            rows, columns = (rows + 1) // 2, (columns + 1) // 2
        self.grid = _coordinates(rows, columns)
        self.squeeze = nn.Conv2d(channels[-1], 16, 1)
        self.out = nn.Sequential(nn.Linear(2 * channels[-1] + 16 * rows * columns, width), nn.SiLU())

    def forward(
        self, pictures: UInt8[Tensor, "batch height width 3"], text: Float[Tensor, "batch text"]
    ) -> Float[Tensor, "batch features"]:
        colour = pictures.permute(0, 3, 1, 2).float() / 127.5 - 1
        place = self.place.to(colour.device).expand(len(colour), -1, -1, -1)
        x = torch.cat([colour, place], 1)
        for stage in self.stages:
            x = stage(x, text)
        return self.out(torch.cat([self._peaks(x), nn.functional.silu(self.squeeze(x)).flatten(1)], -1))

    def _peaks(self, x: Float[Tensor, "batch channel row column"]) -> Float[Tensor, "batch 2*channel"]:
        """Where each channel is brightest: its spatial softmax's mean place (Levine et al. 2016)."""
        weight = x.flatten(2).softmax(-1)
        return (weight @ self.grid.to(x.device).flatten(1).T).flatten(1)


class _FilmStage(nn.Module):
    def __init__(self, channels_in: int, channels: int, kernel: int, text_width: int):
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, kernel, stride=2, padding=kernel // 2, bias=False)
        self.norm = nn.GroupNorm(channels // 8, channels)
        self.film = nn.Linear(text_width, 2 * channels)
        nn.init.zeros_(self.film.bias)

    def forward(
        self, x: Float[Tensor, "batch channel row column"], text: Float[Tensor, "batch text"]
    ) -> Float[Tensor, "batch channel row column"]:
        scale, shift = self.film(text)[..., None, None].chunk(2, 1)
        return nn.functional.silu(self.norm(self.conv(x)) * (1 + scale) + shift)


def _coordinates(rows: int, columns: int) -> Float[Tensor, "2 row column"]:
    """Each pixel's row and column from -1 to 1."""
    return torch.stack(torch.meshgrid(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns), indexing="ij"))
