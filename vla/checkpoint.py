"""Policies on disk: a directory with `policy.json`, how to build it, and `model.safetensors`, its weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file, save_file

from vla.types import EnvSpec, require_agreement

Policy = Any  # an nn.Module that is an Actor, with `spec`, `horizon` and `set_statistics`: Python has no type for both
CHECKPOINTS = "checkpoints"
HERE = "."  # in place of a hub id or folder: the checkpoint itself
TRUSTED = ("policies", "vla.models", "torch.nn")


def build_policy(config: Mapping[str, Any], spec: EnvSpec) -> Policy:
    """A new policy for environments like `spec`; `instantiate(config, spec=spec)` would turn `spec` into a config."""
    return instantiate(config, _partial_=True)(spec=spec)


def initial_policy(
    config: Mapping[str, Any], init: Path | str | None, spec: EnvSpec, changes: Mapping[str, Any] | None = None
) -> tuple[Policy, dict[str, Any]]:
    """The policy to train, and its configuration: a new one, or that of the checkpoint `init` if it fits `spec`.

    `changes` are settings of that one to be different from now on, such as `{"chain": "sde"}` of a flow that learned by
    imitation and is to go on by reinforcement.
    """
    if init is None:
        if changes:
            raise ValueError(f"init_with={dict(changes)} changes a checkpoint, and init names none")
        return build_policy(config, spec), cast(dict[str, Any], _plain(config))
    policy = load_policy(init, changes)
    require_agreement(policy.spec, spec)
    return policy.train(), policy_config(init, changes)


def save_policy(
    directory: Path | str, policy: Policy, config: Mapping[str, Any], info: Mapping[str, Any] | None = None
) -> None:
    """Write `policy`, which `build_policy(config, policy.spec)` makes again; `info` is for the reader.

    A policy that has `save_beside(directory)` was built from more than its configuration, named there by `pretrained`:
    that is written too, and what is written names it as `pretrained: HERE`, so that the checkpoint needs nothing else.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = _plain(config)
    if hasattr(policy, "save_beside"):
        policy.save_beside(directory)
        config = _pointing(config, HERE)
    description = {"policy": config, "spec": policy.spec.to_dict(), "info": dict(info or {})}
    (directory / "policy.json").write_text(json.dumps(description, indent=1) + "\n")
    weights = {name: x.detach().cpu().clone().contiguous() for name, x in policy.state_dict().items()}
    save_file(weights, directory / "model.safetensors")


def load_policy(directory: Path | str, changes: Mapping[str, Any] | None = None) -> Policy:
    """The policy of a checkpoint or, given the directory of a run, of its last one; in evaluation mode, on the CPU.

    With `changes` of its settings there may be parts that have no weights yet.

    A checkpoint names the classes it is made of, so those must be policies or models of this project or of torch.
    Raises FileNotFoundError where there is no checkpoint, ValueError if it is not trusted or its weights do not fit.
    """
    place = find_policy(directory)
    description = _read(place)
    config = _changed(description["policy"], place, changes)
    _require_trusted(config, place)
    policy = build_policy(config, EnvSpec.from_dict(description["spec"]))
    try:
        unknown = policy.load_state_dict(load_file(place / "model.safetensors"), strict=not changes).unexpected_keys
        if unknown:
            raise RuntimeError(f"with {dict(changes or {})} it has no {', '.join(unknown[:3])}")
    except RuntimeError as error:
        raise ValueError(f"the weights in {place} do not fit the policy its policy.json describes: {error}") from error
    return policy.eval()


def describe(directory: Path | str) -> dict[str, Any]:
    """What `policy.json` says: `policy`, `spec` and `info`."""
    return _read(find_policy(directory))


def policy_config(directory: Path | str, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The configuration that the policy of a checkpoint was built from, with `changes`."""
    place = find_policy(directory)
    return _changed(_read(place)["policy"], place, changes)


def find_policy(directory: Path | str) -> Path:
    """Where `policy.json` lies: in `directory`, in its `policy`, or in the last checkpoint of the run it holds."""
    directory = Path(directory)
    candidates = [directory, directory / "policy", *(x / "policy" for x in reversed(checkpoints(directory)))]
    for place in candidates:
        if (place / "policy.json").is_file():
            return place
    what = "has no checkpoint in it" if directory.exists() else "does not exist"
    raise FileNotFoundError(f"no policy: {directory} {what}; name a run or one of its checkpoints (with policy.json)")


def checkpoints(run: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first."""
    return sorted((run / CHECKPOINTS).glob("step_*"), key=lambda path: int(path.name.removeprefix("step_")))


def _changed(config: Any, place: Path, changes: Mapping[str, Any] | None) -> dict[str, Any]:
    here = _pointing(config, str(place), only=HERE)
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.merge(here, dict(changes or {}))))


def _plain(config: Mapping[str, Any]) -> Any:
    return OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else dict(config)


def _pointing(config: Any, pretrained: str, only: str | None = None) -> Any:
    """The configuration with every `pretrained` (but those that are not `only`) replaced."""
    if not isinstance(config, dict):
        return config
    return {
        key: pretrained if key == "pretrained" and only in (None, value) else _pointing(value, pretrained, only)
        for key, value in config.items()
    }


def _read(place: Path) -> dict[str, Any]:
    try:
        description = json.loads((place / "policy.json").read_text())
        return {key: description[key] for key in ("policy", "spec", "info")}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{place / 'policy.json'} is damaged or not a policy's: {error!r}") from error


def _require_trusted(config: Any, place: Path) -> None:
    """A `_target_` may name anything importable; a checkpoint from elsewhere must not choose what runs here."""
    if isinstance(config, dict):
        if "_target_" in config and not _is_trusted(config["_target_"]):
            raise ValueError(
                f"{place / 'policy.json'} asks for {config['_target_']!r}, which is not in {', '.join(TRUSTED)}: "
                "refused, since a checkpoint could run anything that way"
            )
        config = list(config.values())
    for value in config if isinstance(config, list) else []:
        _require_trusted(value, place)


def _is_trusted(target: Any) -> bool:
    """By where the object is defined: `policies.token.torch.load` starts well and is not. Checkpoints may nest."""
    if target in ("vla.run.load_policy", "vla.checkpoint.load_policy"):
        return True
    names = tuple(f"{package}." for package in TRUSTED)
    return str(target).startswith(names) and f"{getattr(get_object(target), '__module__', '')}.".startswith(names)
