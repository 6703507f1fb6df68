"""Print the lowest version of each dependency that pyproject.toml allows, as constraints for pip.

Torch is left out: its old releases for the CPU alone are not on PyPI, and those with CUDA take gigabytes.
"""

import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
for dependency in project["dependencies"]:
    name, lowest = dependency.split(">=")
    if name != "torch":
        print(f"{name}=={lowest}")
