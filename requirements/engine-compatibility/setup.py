"""Puts the `.pth` file at the top of site-packages, the only place where Python reads it.

`pyproject.toml` has no key for a file outside a package, so the build step copies it.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithStartUpFile(build_py):
    """`build_py` that also ships `engine_compatibility.pth`."""

    def run(self) -> None:
        super().run()
        start_up_file = "engine_compatibility.pth"
        self.copy_file(
            str(Path(__file__).parent / start_up_file), str(Path(self.build_lib) / start_up_file)
        )


setup(cmdclass={"build_py": BuildWithStartUpFile})
