"""The versions of what a result depends on."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("regnet-itk", "itk", "itk-elastix", "SimpleITK", "torch", "numpy", "scipy", "scikit-image")


def package_versions() -> dict[str, str]:
    """Return the versions of this package and of those whose work it passes on, by name."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
