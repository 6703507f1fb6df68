"""Other packages that add to this one through entry points, without being installed."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

import regnet_itk.entry_points


@pytest.fixture
def install_packages(monkeypatch):
    """Let packages have entry points for the rest of a test: ``install_packages(group, name="module:object")``.

    It returns the list of the groups that are then asked for.
    """
    yield lambda group, **values: _install(monkeypatch, group, values)
    monkeypatch.undo()
    regnet_itk.entry_points.list_entry_points.cache_clear()


def _install(monkeypatch, group, values):
    points, asked = [EntryPoint(name, value, group) for name, value in values.items()], []

    def found(group):
        asked.append(group)
        return [point for point in points if point.group == group]

    monkeypatch.setattr(regnet_itk.entry_points, "entry_points", found)
    regnet_itk.entry_points.list_entry_points.cache_clear()
    return asked
