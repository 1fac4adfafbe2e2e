"""Conventions of policies trained elsewhere, put between them and our observations."""

import torch
from scenes import scene

from policies.adapters import mirrored


def test_a_mirrored_view_is_robosuites_own_picture_turned_by_180_degrees():
    env = scene("robosuite", "Lift", image_size=64)
    obs = env.reset(1)
    seen = mirrored(obs)
    context = own_context(env)
    for camera in env.spec.cameras:
        raw = own_picture(env, context, camera.name)
        ours, turned = obs.images[camera.name][0].int(), raw.flip(0, 1).int()
        assert (ours - raw.flip(0).int()).abs().float().mean() < 1  # robosuite's pictures are bottom-up
        assert (seen.images[camera.name][0].int() - turned).abs().float().mean() < 1
        assert (ours - turned).abs().float().mean() > 3
    env.close()


def own_context(env):
    from robosuite.utils.binding_utils import MjRenderContextOffscreen

    context = MjRenderContextOffscreen(env.env.sim, device_id=-1)
    context.vopt.geomgroup[0] = 0
    return context


def own_picture(env, context, camera):
    sim = env.env.sim
    context.render(width=64, height=64, camera_id=sim.model.camera_name2id(camera))
    return torch.from_numpy(context.read_pixels(64, 64, depth=False).copy())
