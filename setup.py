"""What a wheel holds beside the code: what the quickstart and the notebooks start from.

It is copied into `refinevla_kit/shipped` of the wheel while that is built, so that nothing lies twice in the
repository. pyproject.toml says everything else.
"""

import re
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = (
    "notebooks/*.ipynb",
    "notebooks/profiles/*.yaml",
    "data/assets/**/*",
    "data/checkpoints/compact_base/*",  # more would not fit in 20 MB
    "data/checkpoints/with_reasoning/*",
    "data/demo/**/*",
    "data/experiment/*.*",
    "data/experiment_2/*.*",
    "data/paper/*",
    "data/records/*",
)


def shipped() -> list[str]:
    """The files by their paths in the repository: those of SHIPPED and the pictures that notebooks show."""
    files = [path for pattern in SHIPPED for path in Path().glob(pattern) if path.is_file()]
    texts = [path.read_text(encoding="utf-8") for path in files if path.suffix == ".ipynb"]
    shown = {picture for text in texts for picture in re.findall(r"\.\./(figures/\w+\.png)", text)}
    return sorted({*map(str, files), *shown})


class BuildPackage(build_py):
    """Setuptools' own step, which copies the package, and then these files."""

    def run(self) -> None:
        if self.editable_mode:
            return
        home = Path(self.build_lib, "refinevla_kit")
        shutil.rmtree(home, ignore_errors=True)  # what an earlier build left would be in this wheel too
        super().run()
        for file in shipped():
            target = home / "shipped" / file
            self.mkpath(str(target.parent))
            self.copy_file(file, str(target))

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), *shipped()]  # of a source distribution


setup(cmdclass={"build_py": BuildPackage})
