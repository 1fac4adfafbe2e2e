"""Finding out whether this machine can render, before a simulator hangs or crashes on it.

`python -m simulators.rendering` prints the Vulkan device sapien would use, or what is missing and how to get it.
"""

import functools
import subprocess
import sys

REMEDY = (
    "sapien found no usable Vulkan device, which ManiSkill needs even for state observations. Run `make setup`; where "
    "that cannot install packages, install a GPU driver with Vulkan, or libvulkan1 and mesa-vulkan-drivers "
    "24 or newer (on Debian 12 from bookworm-backports)."
)
_PROBE = """
import numpy, sapien
device = sapien.Device({device!r})
sapien.render.set_camera_shader_dir("trivial")
scene = sapien.Scene([sapien.physx.PhysxCpuSystem(), sapien.render.RenderSystem(device)])
camera = scene.add_camera("probe", 8, 8, 1.0, 0.01, 1.0)
scene.update_render()
camera.take_picture()
assert numpy.asarray(camera.get_picture("Color")).shape[:2] == (8, 8)
"""


@functools.cache
def vulkan_device(timeout: float = 120.0) -> str | None:
    """Return the device to give ManiSkill as `render_backend` ("gpu" or "cpu"), or None if none can render.

    Probed in child processes with a deadline in seconds, since a bad driver may hang or kill the process.
    """
    for name, device in (("gpu", "cuda"), ("cpu", "cpu")):
        if _renders(device, timeout):
            return name
    return None


def require_vulkan() -> str:
    """Like `vulkan_device`, but raise RuntimeError with the remedy where nothing can render."""
    device = vulkan_device()
    if device is None:
        raise RuntimeError(REMEDY)
    return device


def _renders(device: str, timeout: float) -> bool:
    command = [sys.executable, "-c", _PROBE.format(device=device)]
    try:
        probe = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return False
    return probe.returncode == 0


if __name__ == "__main__":
    found = vulkan_device()
    print(f"rendering on the {found}" if found else REMEDY, file=sys.stderr)  # noqa: T201
    sys.exit(0 if found else 1)
