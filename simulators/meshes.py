"""Lighter pictures for CPU rendering: robot meshes with fewer triangles, same shapes and colours.

A software rasteriser spends its time on triangles, not on pixels: a Panda has 135,000 of them.
"""

import functools

import numpy as np

MIN_TRIANGLES = 200
KEPT = 0.05  # the share of triangles that is left


def simplify_visuals(scene) -> None:
    """Replace every plain visual mesh of a SAPIEN scene with over 1000 triangles by one with a twentieth of them.

    Physics and collision shapes are not touched. Call it again after the scene was rebuilt.
    """
    import sapien

    for entity in scene.entities:
        body = entity.find_component_by_type(sapien.render.RenderBodyComponent)
        if body is None or body.name == "simplified" or _count(body) < 1000 or _is_textured(body):
            continue
        lighter = sapien.render.RenderBodyComponent()
        lighter.name = "simplified"
        for shape in body.render_shapes:
            for new in _simplified_shapes(shape):
                lighter.attach(new)
        lighter.visibility = body.visibility
        entity.remove_component(body)
        entity.add_component(lighter)


def _count(body) -> int:
    return sum(len(part.triangles) for shape in body.render_shapes for part in getattr(shape, "parts", ()))


def _is_textured(body) -> bool:
    """A texture would lose its place on a simplified mesh (the floor's grid, say)."""
    parts = [part for shape in body.render_shapes for part in getattr(shape, "parts", ())]
    return any(part.material.base_color_texture is not None for part in parts)


def _simplified_shapes(shape):
    import sapien

    for part in shape.parts:
        vertices, triangles, normals = _simplify(
            np.ascontiguousarray(part.vertices, dtype=np.float32).tobytes(),
            np.ascontiguousarray(part.triangles, dtype=np.uint32).tobytes(),
        )
        mesh = sapien.render.RenderShapeTriangleMesh(
            vertices * np.asarray(getattr(shape, "scale", (1, 1, 1)), dtype=np.float32),
            triangles,
            normals,
            np.zeros((len(vertices), 2), dtype=np.float32),
            part.material,
        )
        mesh.local_pose = shape.local_pose
        yield mesh


@functools.lru_cache(maxsize=256)
def _simplify(vertices: bytes, triangles: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Quadric edge collapse (Garland and Heckbert 1997), smooth normals; cached, as every scene has the same robot."""
    import fast_simplification
    import trimesh

    points = np.frombuffer(vertices, dtype=np.float32).reshape(-1, 3)
    faces = np.frombuffer(triangles, dtype=np.uint32).reshape(-1, 3)
    mesh = trimesh.Trimesh(points, faces, process=True)  # merges the seams, or the surface would tear open
    wanted = max(MIN_TRIANGLES, int(len(mesh.faces) * KEPT))
    if len(mesh.faces) > wanted:
        points, faces = fast_simplification.simplify(mesh.vertices, mesh.faces, target_count=wanted)
        mesh = trimesh.Trimesh(points, faces, process=False)
    return (
        np.asarray(mesh.vertices, dtype=np.float32),
        np.asarray(mesh.faces, dtype=np.uint32),
        np.asarray(mesh.vertex_normals, dtype=np.float32),
    )
