"""Every configuration of every program composes, and every `_target_` takes exactly the keys it is given."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import OmegaConf

CONFIGS = Path(__file__).parents[1] / "configs"
NAMES = "gymnasium"  # not of a program, but what gymnasium calls our environments
PROGRAMS = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem != NAMES)
OPTIONS = sorted(str(path.relative_to(CONFIGS).with_suffix("")) for path in CONFIGS.glob("*/**/*.yaml"))
# What code supplies at the call: `algorithm(policy=...)`, `teacher(student)`, `encoder(spec)`, `hand(person)`.
SUPPLIED = {"actor", "person", "policy", "spec", "student", "features", "tokens", "bins"}


NOT_FOR = {
    "sft": {"algorithm/distill", "algorithm/ppo", "algorithm/rpd"},
    "online": {"algorithm/sft", "algorithm/one_step"},
}
# An experiment that names an algorithm is not for the programs that have none.
ONLY_FOR = {x: "online" for x in OPTIONS if "override /algorithm:" in (CONFIGS / f"{x}.yaml").read_text()}


def groups_of(program: str) -> set[str]:
    """The groups in a program's defaults list, and the groups nested in what they choose by default."""
    found: set[str] = set()
    waiting = [("", CONFIGS / f"{program}.yaml")]
    while waiting:
        prefix, path = waiting.pop()
        for entry in OmegaConf.load(path).get("defaults", []) if path.exists() else []:
            if not isinstance(entry, str):
                group = next(str(key) for key in entry).split()[-1]
                found.add(f"{prefix}{group}")
                waiting += [(f"{prefix}{group}/", x) for x in (CONFIGS / prefix / group).glob("*.yaml")]
    return found


def overrides_of(option: str) -> list[str]:
    """`algorithm/critic/x` needs an algorithm that has a critic."""
    group, _, name = option.rpartition("/")
    parent, _, nested = group.rpartition("/")
    owners = [x.stem for x in (CONFIGS / parent).glob("*.yaml") if parent and f"- {nested}:" in x.read_text()]
    env = [f"env={name}"] if group == "expert" else []  # an expert belongs to its environment
    return [f"{group}={name}", *(f"{parent}={owner}" for owner in owners[:1]), *env]


def overlaps(option: str, excluded: set[str]) -> bool:
    """Whether an option, or the only owner of its group, is not for a program."""
    owned = {x.replace("=", "/") for x in overrides_of(option)}
    return bool(owned & excluded)


CASES = [(program, []) for program in PROGRAMS] + [
    (program, overrides_of(option))
    for program in PROGRAMS
    for option in OPTIONS
    if option.rpartition("/")[0] in groups_of(program)
    and not overlaps(option, NOT_FOR.get(program, set()))
    and ONLY_FOR.get(option, program) == program
]


def composed(program: str, overrides: list[str]) -> dict[str, Any]:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose(program, overrides=[*overrides, "run_dir=somewhere"])
    return OmegaConf.to_container(cfg, resolve=True)


def targets(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield node
        node = list(node.values())
    for value in node if isinstance(node, list) else []:
        yield from targets(value)


def bind(node: dict[str, Any]) -> None:
    """TypeError unless the target takes these keys and lacks none that nobody supplies."""
    given = {key: value for key, value in node.items() if not key.startswith("_")}
    signature = inspect.signature(get_object(node["_target_"]))
    signature.bind_partial(**given)
    required = {
        name
        for name, x in signature.parameters.items()
        if x.default is x.empty and x.kind not in (x.VAR_POSITIONAL, x.VAR_KEYWORD)
    }
    supplied = SUPPLIED | ({"horizon"} if node.get("_partial_") else set())  # a residual's is its policy's
    if missing := required - given.keys() - supplied:
        raise TypeError(f"{node['_target_']} needs {sorted(missing)}")


@pytest.mark.parametrize(("program", "overrides"), CASES, ids=lambda x: "+".join(x) if isinstance(x, list) else x)
def test_it_composes_and_every_target_binds(program, overrides):
    for node in targets(composed(program, overrides)):
        bind(node)


def test_every_option_is_used_by_some_program():
    assert {option.rpartition("/")[0] for option in OPTIONS} <= set().union(*map(groups_of, PROGRAMS))


def test_binding_sees_wrong_and_missing_keys():
    point = {"_target_": "simulators.point.PointEnv"}
    bind(point)
    with pytest.raises(TypeError, match="unexpected keyword argument 'number'"):
        bind({**point, "number": 3})
    with pytest.raises(TypeError, match="needs \\['horizon'\\]"):
        bind({"_target_": "policies.token.TokenPolicy", "encoder": None})


def test_options_are_really_combined():
    assert composed("online", ["algorithm=ppo", "policy=gaussian"])["algorithm"]["critic"]["encoder"]["_target_"]
    teacher = composed("online", ["policy=token_state"])["algorithm"]["teacher"]
    assert teacher["actor"] == {"_target_": "simulators.point.Homing", "horizon": 2}
