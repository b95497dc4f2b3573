"""A small vocabulary of primitive solids, and the files they are read from: a coloured GLB to look at, an OBJ
of convex pieces to collide with.

Everything is in metres, z up, in the frame of the object or link it belongs to. SAPIEN takes a GLB's
coordinates as they are (no y-up conversion), so none is made here either.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import trimesh
from numpy.typing import ArrayLike, NDArray
from PIL import Image

Colour = tuple[int, int, int]  # sRGB, 0 to 255, as one picks it from a picture
Points = NDArray[np.float64]


@dataclass(frozen=True)
class Part:
    """One coloured piece of a visual. `texture` (uint8 (H, W, 3) sRGB) needs a mesh with `uv` among its
    vertex attributes, and replaces `colour`.
    """

    mesh: trimesh.Trimesh
    colour: Colour
    roughness: float = 0.7
    texture: NDArray[np.uint8] | None = None


def box(low: ArrayLike, high: ArrayLike) -> trimesh.Trimesh:
    """Axis-aligned box between two corners (m)."""
    return trimesh.creation.box(bounds=np.array([low, high], dtype=float))


def lathe(profile: Sequence[tuple[float, float]], axis: str = "x", sections: int = 28) -> trimesh.Trimesh:
    """Solid of revolution of (position along `axis`, radius) pairs, in increasing position for an outward
    surface. `axis` is "x", "y" or "z".
    """
    turns = {"x": (np.pi / 2, [0, 1, 0]), "y": (-np.pi / 2, [1, 0, 0])}
    turn = trimesh.transformations.rotation_matrix(*turns[axis]) if axis in turns else None
    mesh = trimesh.creation.revolve(
        [(radius, along) for along, radius in profile], sections=sections, transform=turn
    )
    mesh.merge_vertices()
    return mesh


def tube(start: float, end: float, radius: float, axis: str = "x", sections: int = 24) -> trimesh.Trimesh:
    """Cylinder along `axis` with crisp rims."""
    return flat(lathe([(start, 0.0), (start, radius), (end, radius), (end, 0.0)], axis, sections))


def rod(
    start: float, end: float, radius: float, axis: str = "z", bevel: float = 0.006, end_radius: float = 0.0
) -> trimesh.Trimesh:
    """Cylinder, or cone to `end_radius`, along `axis` with bevelled rims, shaded smooth."""
    last = end_radius or radius
    profile = [(start, 0.0), (start, radius - bevel), (start + bevel, radius), (start + 1.5 * bevel, radius)]
    profile += [(end - 1.5 * bevel, last), (end - bevel, last), (end, last - bevel), (end, 0.0)]
    return lathe(profile, axis)


def cushion(low: ArrayLike, high: ArrayLike, radius: float) -> trimesh.Trimesh:
    """Box whose edges are rounded with `radius`, shaded smooth."""
    low, high = np.asarray(low, dtype=float) + radius, np.asarray(high, dtype=float) - radius
    corners = [(x, y, z) for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])]
    return hull(np.concatenate([ellipsoid_points(corner, [radius] * 3) for corner in corners]))


def hull(points: ArrayLike) -> trimesh.Trimesh:
    """Convex hull of points (n, 3), with shared vertices: what a collision piece has to be."""
    return trimesh.convex.convex_hull(np.asarray(points, dtype=float))


def tapered_box(start: tuple[float, ...], end: tuple[float, ...]) -> trimesh.Trimesh:
    """Hull of two rectangles across x; each end is (x, y low, y high, z half height)."""
    return hull([(x, y, z) for x, *ys, half in (start, end) for y in ys for z in (-half, half)])


def bevelled_box(half: float, bevel: float) -> trimesh.Trimesh:
    """Cube of half edge `half` whose edges are cut off by `bevel`."""
    corners = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).T.reshape(-1, 3)
    return hull(
        np.concatenate([corners * (np.full(3, half) - bevel * (1 - np.eye(3)[axis])) for axis in range(3)])
    )


def ellipsoid_points(centre: ArrayLike, radii: ArrayLike, subdivisions: int = 2) -> Points:
    """Points (n, 3) on an ellipsoid."""
    return trimesh.creation.icosphere(subdivisions=subdivisions).vertices * np.asarray(radii) + np.asarray(
        centre
    )


def placed(
    mesh: trimesh.Trimesh,
    scale: ArrayLike = (1, 1, 1),
    move: ArrayLike = (0, 0, 0),
    turn: tuple[float, ...] = (0, 0, 0),
) -> trimesh.Trimesh:
    """The mesh scaled, turned (radians about x, then y, then z) and moved (m), in this order."""
    matrix = trimesh.transformations.euler_matrix(*turn)
    matrix[:3, :3] *= np.asarray(scale, dtype=float)
    matrix[:3, 3] = move
    return mesh.copy().apply_transform(matrix)


def flat(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """The mesh with a vertex per face corner, so that its edges are shaded as edges."""
    mesh = mesh.copy()
    mesh.unmerge_vertices()
    return mesh


def glb(parts: Iterable[Part]) -> bytes:
    """The parts as one binary glTF with normals. glTF base colours are linear: given as sRGB they would be
    washed out.
    """
    scene = trimesh.Scene()
    for number, part in enumerate(parts):
        mesh = part.mesh.copy()
        if part.texture is None:
            linear = (np.array(part.colour) / 255.0) ** 2.2
            material = trimesh.visual.material.PBRMaterial(
                baseColorFactor=[*linear, 1.0], metallicFactor=0.0, roughnessFactor=part.roughness
            )
            mesh.visual = trimesh.visual.TextureVisuals(material=material)
        else:
            material = trimesh.visual.material.PBRMaterial(
                baseColorTexture=Image.fromarray(part.texture),
                metallicFactor=0.0,
                roughnessFactor=part.roughness,
            )
            mesh.visual = trimesh.visual.TextureVisuals(uv=mesh.vertex_attributes["uv"], material=material)
        scene.add_geometry(mesh, geom_name=f"part_{number}", node_name=f"part_{number}")
    return bytes(trimesh.exchange.gltf.export_glb(scene, include_normals=True))


def obj(pieces: Iterable[trimesh.Trimesh]) -> str:
    """The convex pieces as Wavefront text, one named group with its own shared vertices each: SAPIEN then
    makes exactly one shape of each piece.
    """
    lines, used = [], 1
    for number, piece in enumerate(pieces):
        lines.append(f"o piece_{number}")
        lines += [f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in piece.vertices]
        lines += [f"f {a} {b} {c}" for a, b, c in piece.faces + used]
        used += len(piece.vertices)
    return "\n".join(lines) + "\n"


def stl(piece: trimesh.Trimesh) -> bytes:
    """One convex piece as binary STL, for the URDF."""
    return bytes(trimesh.exchange.stl.export_stl(piece))
