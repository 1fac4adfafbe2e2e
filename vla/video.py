"""Films of episodes: the cameras side by side, as mp4."""

from fractions import Fraction
from pathlib import Path

import av
import torch
from jaxtyping import UInt8
from torch import Tensor

from vla.types import Rollout

MIN_HEIGHT = 192  # pixels; smaller pictures are enlarged so that a person can see them
HOLD = 0.8  # seconds the last picture stays


def film(episode: Rollout) -> UInt8[Tensor, "time height width 3"]:
    """What the cameras saw at each decision of one episode (an element of `Rollout.episodes()`), side by side."""
    views = [episode.obs.images[name] for name in sorted(episode.obs.images.keys())]
    return torch.cat([_enlarged(view, max(x.shape[1] for x in views)) for view in views], dim=2)


def save_film(path: Path, episode: Rollout, control_hz: float) -> None:
    """Write the film of one episode at the speed it was played."""
    write_video(path, film(episode), fps=max(2.0, control_hz / episode.action.commands.shape[-2]))


def write_video(path: Path, frames: UInt8[Tensor, "time height width 3"], fps: float) -> None:
    """H.264 that browsers play. Odd sizes lose their last row or column, the last picture is held for a moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}")
    rate = round(fps * 1000)
    with av.open(str(part), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(rate, 1000), options={"crf": "20"})
        stream.height, stream.width = (x // 2 * 2 for x in frames.shape[1:3])
        stream.pix_fmt = "yuv420p"
        held = frames[-1:].expand(max(1, round(HOLD * fps)), -1, -1, -1)
        for picture in torch.cat([frames, held])[:, : stream.height, : stream.width].numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    part.replace(path)


def read_video(path: Path) -> UInt8[Tensor, "time height width 3"]:
    """All pictures of a film."""
    with av.open(str(path)) as container:
        pictures = [torch.from_numpy(x.to_ndarray(format="rgb24")) for x in container.decode(video=0)]
    return torch.stack(pictures)


def _enlarged(view: UInt8[Tensor, "time height width 3"], height: int) -> UInt8[Tensor, "time rows columns 3"]:
    """A whole number of times, so that pixels stay sharp; shorter views get a black strip below."""
    times = max(1, -(-MIN_HEIGHT // height))
    view = view.repeat_interleave(times, 1).repeat_interleave(times, 2)
    missing = height * times - view.shape[1]
    return torch.cat([view, view.new_zeros(len(view), missing, *view.shape[2:])], 1)
