"""Writes the asset pack: everything that the WidowX's and the Google Robot's tasks load, made from primitives
in seconds, the same bytes each time.

python -m scripts.embedded_assets.pack [data/assets]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PIL import Image

from refinevla_kit.errors import KitError
from refinevla_kit.files import replacing
from refinevla_kit.simulator.maniskill import missing_files
from scripts.embedded_assets import backgrounds, google_robot, google_scenes, robot
from scripts.embedded_assets.cabinet import STATIONS, cabinet_urdf
from scripts.embedded_assets.google_objects import google_things
from scripts.embedded_assets.objects import Thing, things
from scripts.embedded_assets.shapes import Part, box, flat, glb, obj, stl

TASKS, ROBOT = Path("data/tasks/bridge_v2_real2sim_dataset"), Path("data/robots/widowx")
GOOGLE_TASKS, GOOGLE_ROBOT = Path("data/tasks/google_robot_real2sim"), Path("data/robots/googlerobot")

# The table that things lie on (invisible: the background is painted over it). ManiSkill turns the stage by 90
# degrees about x, hence y up here, and
# moves it by (2.0634, 2.8313, 0): its top is at z = 0.87 and spans x -1.2 to 0.6, y -1 to 1 in the world.
STAGE_LOW, STAGE_HIGH = (-3.2634, 0.0, 1.8313), (-1.4634, 0.87, 3.8313)


def generate(directory: Path) -> None:
    """Write the pack as `directory` (replacing an older one), in ManiSkill's layout:
    `directory/data/tasks/...`, `directory/data/robots/...`.

    Deterministic: the same version of the kit and its libraries writes the same bytes. On an error nothing is
    left behind.
    """
    if directory.exists() and missing_files(directory) and any(directory.iterdir()):
        raise KitError(
            f"{directory} exists and is no asset pack; generating would replace it", "give a new folder"
        )
    with replacing(directory) as root:
        _write_things(root / TASKS / "custom")
        _write_scenes(root / TASKS)
        _write_robot(root / ROBOT)
        _write_google_tasks(root / GOOGLE_TASKS)
        _write_google_robot(root / GOOGLE_ROBOT)


def _write_things(folder: Path) -> None:
    for info_name, models in things().items():
        for model_id, thing in models.items():
            _write_thing(folder / "models" / model_id, thing)
        (folder / info_name).write_text(
            json.dumps({model_id: thing.info() for model_id, thing in models.items()}, indent=1) + "\n"
        )


def _write_thing(model: Path, thing: Thing) -> None:
    model.mkdir(parents=True)
    (model / "textured.glb").write_bytes(glb(thing.parts))
    (model / "collision.obj").write_text(obj(thing.pieces))


def _write_scenes(folder: Path) -> None:
    (folder / "stages").mkdir(parents=True)
    (folder / "real_inpainting").mkdir()
    stage = glb([Part(flat(box(STAGE_LOW, STAGE_HIGH)), (150, 98, 66))])
    for stage_name, picture_name, scene in (
        ("bridge_table_1_v1", "bridge_real_eval_1", backgrounds.TABLE),
        ("bridge_table_1_v2", "bridge_sink", backgrounds.SINK_SCENE),
    ):
        (folder / "stages" / f"{stage_name}.glb").write_bytes(stage)
        Image.fromarray(backgrounds.paint(scene)).save(folder / "real_inpainting" / f"{picture_name}.png")


def _write_robot(folder: Path) -> None:
    meshes = folder / "meshes"
    meshes.mkdir(parents=True)
    bodies = robot.bodies()
    for link, (parts, pieces) in bodies.items():
        (meshes / f"{link}.glb").write_bytes(glb(parts))
        for number, piece in enumerate(pieces):
            (meshes / f"{link}_{number}.stl").write_bytes(stl(piece))
    (folder / "wx250s.urdf").write_text(
        robot.urdf({link: len(pieces) for link, (_, pieces) in bodies.items()})
    )
    (folder / "wx250s.srdf").write_text(robot.srdf())


def _write_google_tasks(folder: Path) -> None:
    for model_id, thing in google_things().items():
        _write_thing(folder / "custom/models" / model_id, thing)
    for station in STATIONS:
        (folder / "custom" / f"{station}.urdf").write_text(cabinet_urdf(station))
    (folder / "stages").mkdir()
    for name, parts in google_scenes.stages().items():
        (folder / "stages" / f"{name}.glb").write_bytes(glb(parts))
    (folder / "real_inpainting").mkdir()
    for name, scene in google_scenes.photographs().items():
        Image.fromarray(backgrounds.paint(scene)).save(folder / "real_inpainting" / name)


def _write_google_robot(folder: Path) -> None:
    (folder / "meshes").mkdir(parents=True)
    shapes = google_robot.bodies()
    for name, body in shapes.items():
        for role, meshes in body.seen.items():
            parts = [Part(mesh, (255, 255, 255)) for mesh in meshes]  # the URDF gives the colour
            (folder / "meshes" / f"{name}.{role}.glb").write_bytes(glb(parts))
        (folder / "meshes" / f"{name}.obj").write_text(obj(body.pieces))
    for colouring in google_robot.COLOURINGS:
        text = google_robot.robot_urdf(colouring, shapes)
        (folder / f"{google_robot.NAME}{colouring}.urdf").write_text(text)


if __name__ == "__main__":
    generate(Path(sys.argv[1] if sys.argv[1:] else "data/assets"))
