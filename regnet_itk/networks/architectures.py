"""The networks that there are: of each one record, which is all that the rest of the program knows of it.

A network of another package is found through an entry point of the group ``regnet_itk.networks``, whose name is the
network's and whose object is the record.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from regnet_itk.entry_points import list_entry_points, load_entry_point
from regnet_itk.errors import ModelError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor, nn

    from regnet_itk.networks.running import Runner, RunSetup

Shape = tuple[int, int, int]


def _cube(size: int) -> Shape:
    return size, size, size


def _everywhere(block: Tensor) -> Tensor:
    return block


def _nothing_added(network: nn.Module, auxiliary: bool) -> nn.Module:
    return network


def _none(network: nn.Module) -> tuple[float, ...]:
    return ()


@dataclass(frozen=True)
class Architecture:
    """A kind of network.

    Networks take normalised fixed and moving intensities, tensors of shape (batch, 1, z, y, x) on the same voxels, and
    return displacements of shape (batch, 3, z, y, x) in mm along the axes x, y, z of those voxels: one tensor, or a
    list of such tensors of which the last one is the result.

    Parameters
    ----------
    name : str
        What model files and training recipes call it.
    make : callable
        Takes the voxel size in mm and returns an untrained network.
    voxel_size : float
        mm; of the images that it is trained on.
    make_runner : callable
        Takes a trained network and a :class:`~regnet_itk.networks.running.RunSetup`, and returns what runs a copy of
        the network over a whole image.
    loss : callable
        Takes what the network returned (a list of tensors), the true u (batch, 3, z, y, x) in mm and the weight
        (batch, 1, z, y, x), both at the network's outputs; returns what training minimises.
    with_heads : callable
        Takes a network, and whether a recipe wants auxiliary outputs; returns what is trained: the network itself, or
        a module that holds it as ``network``.
    block_shape : callable
        Takes a recipe's ``block_size`` and returns the voxels z, y, x of a block to train on.
    at_outputs : callable
        Takes a tensor (batch, channel, z, y, x) on a block's voxels and returns it at the network's outputs.
    stages : callable
        Takes a network and returns the voxel sizes in mm of the stages that it runs, the coarsest first, if the last
        ones may be left out.
    begin_with : callable
        Takes a trained network of any kind and returns one of this kind that begins with what the other has learnt, or
        None if it cannot. By default training begins with networks of the same kind only.
    block_multiple : int
        Of which a ``block_size`` must be a multiple.
    has_batch_statistics : bool
        Whether it has batch normalisation, whose statistics a recipe may freeze.
    predicts_everywhere : bool
        Whether it predicts at every voxel of a block, so that it can be trained on what it has left itself.
    auxiliary_outputs : bool
        Whether a recipe may leave its auxiliary outputs out.
    """

    name: str
    make: Callable[[float], nn.Module]
    voxel_size: float
    make_runner: Callable[[nn.Module, RunSetup], Runner]
    loss: Callable[[list[Tensor], Tensor, Tensor], Tensor]
    with_heads: Callable[[nn.Module, bool], nn.Module] = _nothing_added
    block_shape: Callable[[int], Shape] = _cube
    at_outputs: Callable[[Tensor], Tensor] = _everywhere
    stages: Callable[[nn.Module], tuple[float, ...]] = _none
    begin_with: Callable[[nn.Module], nn.Module | None] | None = None
    block_multiple: int = 1
    has_batch_statistics: bool = False
    predicts_everywhere: bool = True
    auxiliary_outputs: bool = False


ARCHITECTURES: dict[str, str | Architecture] = {
    "regnet": "regnet_itk.networks.regnet_records:REGNET",
    "regnet_early": "regnet_itk.networks.regnet_records:REGNET_EARLY",
    "regnet_1scale": "regnet_itk.networks.regnet_records:REGNET_1SCALE",
    "general": "regnet_itk.networks.general_record:GENERAL",
    "coarse_to_fine": "regnet_itk.networks.coarse_to_fine_record:COARSE_TO_FINE",
}
"""The networks of this package, as ``module:name`` of their records: names can be told without loading torch."""

ENTRY_POINTS = "regnet_itk.networks"
"""The group of entry points through which other packages add theirs."""


def known_architectures() -> tuple[str, ...]:
    """Return the names of all networks that models and recipes can ask for."""
    return tuple(dict.fromkeys((*ARCHITECTURES, *list_entry_points(ENTRY_POINTS))))


def find_architecture(name: str) -> Architecture:
    """Return the record of a network.

    Raises
    ------
    ModelError
        If there is no such network, or the package that has it cannot be loaded.
    """
    if name in ARCHITECTURES:
        there = ARCHITECTURES[name]
        if isinstance(there, Architecture):
            return there
        module, _, attribute = there.partition(":")
        record: Architecture = getattr(import_module(module), attribute)
        return record
    if name not in list_entry_points(ENTRY_POINTS):
        near = did_you_mean(name, known_architectures()) or f"; known are {', '.join(known_architectures())}"
        raise ModelError(f"unknown network architecture '{name}'{near}")
    added = list_entry_points(ENTRY_POINTS)[name]
    found: Architecture = load_entry_point(added, "network", lambda a: isinstance(a, Architecture), ModelError)
    return found
