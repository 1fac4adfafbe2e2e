"""What a policy and a robot on different machines tell each other: msgpack, with arrays as dtype, shape and bytes.

Nothing that a stranger sends is executed. What is malformed, too large, or not what was agreed on is a ValueError.
"""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgpack
import numpy as np
import PIL.Image
import torch
from jaxtyping import UInt8
from tensordict import TensorDict
from torch import Tensor

from vla.types import Action, EnvSpec, Observation

PROTOCOL = 1  # both sides must speak the same
LARGEST = 64 * 2**20  # bytes of a message, and of the pictures of a camera when decoded
MOST = 2**14  # members of a list or mapping
DTYPES = ("uint8", "bool", "int32", "int64", "float16", "float32", "float64")
PICTURES = ("raw", "png", "jpeg")
QUALITY = 95  # of JPEG


def packed(message: Mapping[str, Any]) -> bytes:
    """ValueError if nobody would take it."""
    found = msgpack.packb(message)
    if len(found) > LARGEST:
        raise ValueError(
            f"a message of {len(found)} bytes is more than the {LARGEST} that are taken: use fewer environments at "
            "once, smaller pictures, or pictures=jpeg"
        )
    return found


def unpacked(message: object) -> dict[str, Any]:
    """The mapping that `packed` made these bytes of."""
    if not isinstance(message, bytes):
        raise ValueError(f"a message is bytes, got {type(message).__name__}")
    try:
        found = msgpack.unpackb(message, max_array_len=MOST, max_map_len=MOST, max_ext_len=0)
    except (ValueError, msgpack.UnpackException) as error:
        raise ValueError(f"not a message: {type(error).__name__}: {error}") from error
    return _mapping(found, "a message")


def encoded_observation(obs: Observation, pictures: str = "raw") -> dict[str, Any]:
    """What a policy may see of it. `pictures` travel raw, as PNG (smaller, the same) or as JPEG (not the same)."""
    if obs.batch_dims != 1:
        raise ValueError(f"observations have one leading axis, that of environments, got {tuple(obs.batch_size)}")
    names = [str(name) for name in obs.images.keys()]  # noqa: SIM118 -- iterating over a TensorDict gives its rows
    images = {name: _encoded_pictures(cast(Tensor, obs.images[name]), pictures) for name in names}
    return {"images": images, "proprio": _encoded(obs.proprio), "instruction": list(obs.instruction)}


def decoded_observation(plain: Any, spec: EnvSpec) -> Observation:
    """ValueError unless it is one of an environment like `spec`."""
    told = _mapping(plain, "an observation", "images", "proprio", "instruction")
    texts, images = told["instruction"], _mapping(told["images"], "images", *(x.name for x in spec.cameras))
    if not isinstance(texts, list) or not texts or not all(isinstance(x, str) for x in texts):
        raise ValueError(
            "an observation has one text as instruction for each environment, of which there is one at least"
        )
    n = len(texts)
    pictures = {x.name: _decoded_pictures(images[x.name], x.name, (n, x.height, x.width, 3)) for x in spec.cameras}
    proprio = _decoded(told["proprio"], "proprio", "float32", (n, spec.proprio_dim))
    return Observation(images=TensorDict(pictures, [n]), proprio=proprio, instruction=texts, batch_size=[n])


def encoded_action(action: Action) -> dict[str, Any]:
    """With its latent, which may hold other decisions, such as a residual's."""
    latent = {
        str(name): encoded_action(x) if isinstance(x, Action) else _encoded(x) for name, x in action.latent.items()
    }
    return {"commands": _encoded(action.commands), "log_prob": _encoded(action.log_prob), "latent": latent}


def decoded_action(plain: Any, rows: int, chunk: Sequence[int] | None = None) -> Action:
    """ValueError unless it is one for so many environments; `chunk` are horizon and action, where they are known."""
    told = _mapping(plain, "an action", "commands", "log_prob", "latent")
    latent = {
        name: decoded_action(x, rows) if isinstance(x, dict) and "commands" in x else _decoded(x, f"latent {name}")
        for name, x in _mapping(told["latent"], "a latent").items()
    }
    commands, log_prob = _decoded(told["commands"], "commands"), _decoded(told["log_prob"], "log_prob")
    if any(x.shape[:1] != (rows,) for x in (commands, log_prob, *latent.values())):
        raise ValueError(f"commands, log_prob and latent must have {rows} rows, as many as were asked for")
    if chunk is not None and tuple(commands.shape[1:]) != tuple(chunk):
        raise ValueError(f"chunks must have the shape {tuple(chunk)}, got {tuple(commands.shape[1:])}")
    return Action(commands=commands, log_prob=log_prob, latent=TensorDict(latent, [rows]), batch_size=[rows])


def decoded_spec(plain: Any) -> EnvSpec:
    """What `EnvSpec.to_dict` gave on the other side."""
    try:
        return EnvSpec.from_dict(_mapping(plain, "a spec"))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"not the spec of an environment: {type(error).__name__}: {error}") from error


def _mapping(plain: Any, what: str, *names: str) -> dict[str, Any]:
    """ValueError unless it has texts as keys and, if any are named, exactly those."""
    if not isinstance(plain, dict) or not all(isinstance(x, str) for x in plain):
        raise ValueError(f"{what} is a mapping from names, got {type(plain).__name__}")
    if names and set(plain) != set(names):
        raise ValueError(f"{what} has {', '.join(names)}, got {', '.join(sorted(plain)) or 'nothing'}")
    return plain


def _encoded(x: Any) -> dict[str, Any]:
    """Of a tensor."""
    array = x.detach().cpu().numpy()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "bytes": array.tobytes()}


def _decoded(plain: Any, what: str, dtype: str | None = None, shape: Sequence[int] | None = None) -> Tensor:
    """ValueError unless it is an array, as large as it says, of this type and shape where they are given."""
    told = _mapping(plain, what, "dtype", "shape", "bytes")
    sizes, data = told["shape"], told["bytes"]
    if told["dtype"] not in DTYPES or dtype not in (None, told["dtype"]):
        raise ValueError(f"{what} must be {dtype or ' or '.join(DTYPES)}, got {told['dtype']!r}")
    if not isinstance(sizes, list) or len(sizes) > 8 or not all(type(x) is int and 0 <= x <= LARGEST for x in sizes):
        raise ValueError(f"the shape of {what} must be a short list of sizes, got {sizes!r}")
    if shape is not None and tuple(sizes) != tuple(shape):
        raise ValueError(f"{what} must have the shape {tuple(shape)}, got {tuple(sizes)}")
    expected = math.prod(sizes) * np.dtype(told["dtype"]).itemsize
    if not isinstance(data, bytes) or len(data) != expected:
        got = len(data) if isinstance(data, bytes) else type(data).__name__
        raise ValueError(f"{what} must have {expected} bytes as its type and shape say, got {got}")
    return torch.from_numpy(np.frombuffer(data, told["dtype"]).reshape(sizes).copy())


def _encoded_pictures(frames: UInt8[Tensor, "env height width 3"], how: str) -> dict[str, Any]:
    if how not in PICTURES:
        raise ValueError(f"pictures must be one of {', '.join(PICTURES)}, got {how!r}")
    if how == "raw":
        return _encoded(frames)
    files = []
    for frame in frames.cpu().numpy():
        file = io.BytesIO()
        PIL.Image.fromarray(frame).save(file, format=how, **({"quality": QUALITY} if how == "jpeg" else {}))
        files.append(file.getvalue())
    return {"files": files}


def _decoded_pictures(plain: Any, name: str, shape: tuple[int, int, int, int]) -> Tensor:
    if not isinstance(plain, dict) or "files" not in plain:
        return _decoded(plain, f"the picture of {name}", "uint8", shape)
    files = plain["files"]
    if not isinstance(files, list) or len(files) != shape[0] or not all(isinstance(x, bytes) for x in files):
        raise ValueError(f"{name} must have one PNG or JPEG for each of {shape[0]} environments")
    if math.prod(shape) > LARGEST:
        raise ValueError(f"{name} would have {math.prod(shape)} bytes, more than {LARGEST}: use fewer environments")
    return torch.from_numpy(np.stack([_decoded_file(x, name, shape[1:]) for x in files]))


def _decoded_file(file: bytes, name: str, shape: tuple[int, int, int]) -> np.ndarray:
    """Its size is looked at before it is decoded: a small file may claim to be a huge picture."""
    try:
        picture = PIL.Image.open(io.BytesIO(file), formats=("PNG", "JPEG"))
        if (picture.height, picture.width) == shape[:2] and picture.mode == "RGB":
            return np.asarray(picture)
    except Exception as error:  # decoders have many
        raise ValueError(f"a picture of {name} is neither PNG nor JPEG: {type(error).__name__}: {error}") from error
    raise ValueError(
        f"a picture of {name} must be RGB of {shape[0]} x {shape[1]} pixels, got {picture.mode} of {picture.height} x "
        f"{picture.width}"
    )
