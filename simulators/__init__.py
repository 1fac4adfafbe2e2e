"""Simulators behind the one interface of `vla.types`."""

import os

os.environ.setdefault("MUJOCO_GL", "egl")  # how MuJoCo draws without a screen; it reads it once, when it is imported
