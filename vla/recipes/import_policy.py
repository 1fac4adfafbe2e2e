"""A public policy as a checkpoint: `python -m vla.recipes.import_policy policy.pretrained=ID out=DIR`."""

import shutil
from contextlib import closing
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from vla.checkpoint import build_policy, save_policy
from vla.program import Figures, program


def import_policy(cfg: DictConfig) -> Figures:
    """Write the policy with what its commands mean in `env`; it can then be evaluated, tuned or built upon.

    What it cannot tell by itself (units, mirrored pictures, which camera is which) is said here, once.
    """
    out = Path(cfg.out)
    if out.exists():
        raise FileExistsError(f"out={out} exists already: name another directory")
    alone = {"workers": 0} if "workers" in cfg.env else {}
    with closing(instantiate(cfg.env, num_envs=1, **alone)) as env:
        policy = build_policy(cfg.policy, env.spec)
    part = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(part, ignore_errors=True)
    save_policy(part, policy, cfg.policy, {"program": "import_policy"})
    part.rename(out)
    return {
        "out": str(out),
        "policy": type(policy).__name__,
        "command": str(policy.spec.command),
        "horizon": policy.horizon,
        "parameters": sum(x.numel() for x in policy.parameters()),
    }


main = program("import_policy", import_policy)

if __name__ == "__main__":
    main()
