"""Models as files: the weights of a network with a description of what it is and what it was trained on."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regnet_itk.digests import digest_text
from regnet_itk.errors import ModelError, ParameterError, did_you_mean
from regnet_itk.inputs import MISSING, why_no_file
from regnet_itk.networks.architectures import Architecture, find_architecture
from regnet_itk.networks.world import CHEST_CT, World
from regnet_itk.outputs import write_whole
from regnet_itk.threads import use_torch
from regnet_itk.typed_tables import build

if TYPE_CHECKING:
    from torch import Tensor, nn

_log = logging.getLogger(__name__)

_FORMAT = "regnet-itk model 1"
_SEAL = "description_sha256"
"""Key of the hash of the description and of the weights' hash; files of version 0.1 lack it."""

_METADATA = "__metadata__"
_ALTERED = "model file '{}' was altered: its weights do not match the hash in its description"

_LONGEST_HEADER = 100_000_000  # bytes, of the format


@dataclass(frozen=True)
class ModelDescription:
    """What a model is. It travels inside the model's file.

    Parameters
    ----------
    name : str
    architecture : str
        Name of the kind of network; :mod:`regnet_itk.networks.architectures` has their records.
    voxel_size : float
        Voxels in mm that the network works on.
    world : World
        What its images show, how their values are read, where it predicts.
    capture_range : float
        Largest displacement in mm that it follows: what it was trained on, if it does not follow less.
    training : dict
        Images with their sources, recipe, steps, hours, machine, seed, versions.
    accuracy : dict
        Measured errors, with the sets they were measured on.
    """

    name: str
    architecture: str
    voxel_size: float
    world: World
    capture_range: float
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    accuracy: dict[str, Any] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as one flat table of plain values, as it stands in the model's file."""
        values = dataclasses.asdict(self)
        world = values.pop("world")
        first = {
            name: world.pop(name) if name == "intensity_range" else values[name]
            for name in ("name", "architecture", "voxel_size", "intensity_range", "capture_range")
        }
        return {**first, "training": self.training, "accuracy": self.accuracy, "region": world.pop("region"), **world}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelDescription:
        """Return what :meth:`to_dict` has written; what a file from before the worlds lacks is that of chest CT.

        Raises
        ------
        ParameterError
            If something is missing or unknown, of the wrong type, or cannot be.
        """
        worlds = {f.name for f in dataclasses.fields(World)}
        of_world = {name: value for name, value in values.items() if name in worlds}
        if "intensity_range" not in of_world:
            raise ParameterError("key 'intensity_range' is missing")
        left = {name: value for name, value in values.items() if name not in worlds}
        description = build(cls, {**left, "world": {**dataclasses.asdict(CHEST_CT), **of_world}}, "description")
        if not description.voxel_size > 0:
            raise ParameterError("voxels without a size")
        return description


@dataclass(frozen=True)
class Model:
    """A network with its description; `digest` is the SHA-256 of its weights."""

    network: nn.Module
    description: ModelDescription
    digest: str

    @property
    def architecture(self) -> Architecture:
        """What kind of network it is."""
        return find_architecture(self.description.architecture)

    def stages_left_out(self, wanted: tuple[float, ...]) -> int:
        """Return how many of the network's stages are left out, beginning with the finest.

        Parameters
        ----------
        wanted : tuple of float
            Those to run: voxel sizes in mm, the coarsest first; none are all.

        Raises
        ------
        ParameterError
            If the network has no stages, or the ones wanted are not its first ones.
        """
        if not wanted:
            return 0
        there, name = self.architecture.stages(self.network), self.description.name
        if not there:
            raise ParameterError(f"the model '{name}' has no stages to choose from; leave out RegNetStages")
        if wanted != there[: len(wanted)]:
            given, all_of_them, fewer = (" ".join(f"{mm:g}" for mm in part) for part in (wanted, there, there[:-1]))
            raise ParameterError(
                f"the model '{name}' has stages of {all_of_them} mm and begins with the coarsest: it cannot run "
                f"'{given}', but (RegNetStages {fewer})"
            )
        return len(there) - len(wanted)

    def at_voxel_size(self, voxel_size: float) -> Model:
        """Return the model for voxels of another size, if it counts in voxels.

        Parameters
        ----------
        voxel_size : float
            mm.

        Raises
        ------
        ParameterError
            If the model knows voxels of one size only, or none of this size.
        """
        here, limits = self.description.voxel_size, self.description.world.voxel_sizes
        if voxel_size == here:
            return self
        if limits is None or not limits[0] <= voxel_size <= limits[1]:
            known = f"{here:g} mm" if limits is None else f"{limits[0]:g} to {limits[1]:g} mm"
            raise ParameterError(
                f"the model '{self.description.name}' works on voxels of {known}, not of {voxel_size:g} mm"
            )
        network = copy.deepcopy(self.network)
        network.voxel_size = voxel_size  # type: ignore[assignment]
        reach = self.description.capture_range * voxel_size / here
        description = dataclasses.replace(self.description, voxel_size=voxel_size, capture_range=reach)
        return Model(network, description, self.digest)

    def normalise(self, values: Tensor) -> Tensor:
        """Map the intensity range of the model's world to -1..1, clipped."""
        low, high = self.description.world.intensity_range
        return values.clamp(low, high).sub_(low).mul_(2.0 / (high - low)).sub_(1.0)


def save_model(network: nn.Module, description: ModelDescription, path: str | Path) -> None:
    """Write a model as one safetensors file, whole or not at all.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    metadata = {
        "format": _FORMAT,
        "description": json.dumps(description.to_dict()),
        "sha256": _digest(tensors),
    }
    metadata[_SEAL] = _seal(metadata)
    # not save_file: it makes a file that only its owner can read, whatever the umask says
    write_whole(path, lambda part: part.write_bytes(save(tensors, metadata=metadata)))


def load_model(path: str | Path) -> Model:
    """Read a model and check that it is whole and fits its network.

    Raises
    ------
    ModelError
        If the file is missing, truncated, not a model, altered, or of another network than it says.

    Examples
    --------
    >>> from regnet_itk import load_model, shipped_models
    >>> load_model(shipped_models()["regnet_multistage"]).description.voxel_size
    2.0
    """
    model, sealed = _load(Path(path))
    if not sealed:
        _log.warning(
            "model file '%s' is of version 0.1: whether its description was altered since cannot be told; if you trust "
            "it, 'regnet-itk models FILE --seal' adds the hash", path,
        )  # fmt: skip
    return model


def _load(path: Path) -> tuple[Model, bool]:
    """Return a model, and whether its description has a hash."""
    import torch
    from safetensors import SafetensorError, safe_open

    use_torch(torch.get_num_threads())
    if (why := why_no_file(path)) is not None:
        raise ModelError(f"model file '{path}' {why}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    except (SafetensorError, OSError) as error:
        raise ModelError(f"model file '{path}' is damaged or not a safetensors file: {error}") from None
    if metadata.get("format") != _FORMAT:
        raise ModelError(f"model file '{path}' was not written by regnet-itk; train one with the package's own code")
    digest = _digest(tensors)
    if digest != metadata.get("sha256"):
        raise ModelError(_ALTERED.format(path))
    description = _description(metadata, path)
    try:
        network = find_architecture(description.architecture).make(description.voxel_size)
    except ModelError as error:
        raise ModelError(f"model file '{path}': {error}") from None
    known = network.state_dict()
    strange = [n for n, t in tensors.items() if n in known and t.is_floating_point() != known[n].is_floating_point()]
    if strange:  # torch would take their bits for other numbers
        raise ModelError(f"model file '{path}' was altered: '{strange[0]}' is of the type {tensors[strange[0]].dtype}")
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ModelError(
            f"model file '{path}' does not fit the network '{description.architecture}' that it names: {reason[:200]}"
        ) from None
    network.requires_grad_(False)
    whole = network.eval().to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    return Model(whole, description, digest), _SEAL in metadata


def read_model_header(path: str | Path) -> tuple[ModelDescription, str]:
    """Read what a model says of itself, and the hash of its weights, without reading the weights or loading torch.

    The hash of the description is checked; :func:`load_model` checks that of the weights too.

    Raises
    ------
    ModelError
        If the file is missing, does not begin as a model's file does, or has an altered description.
    """
    path = Path(path)
    if (why := why_no_file(path)) is not None:
        raise ModelError(f"model file '{path}' {why}")
    metadata, _ = _read_header(path)
    if metadata.get("format") != _FORMAT:
        raise ModelError(f"model file '{path}' was not written by regnet-itk; train one with the package's own code")
    return _description(metadata, path), str(metadata.get("sha256", ""))


def check_model_file(path: str | Path) -> ModelDescription:
    """Check a model's file as far as that goes without loading torch, and return its description.

    Raises
    ------
    ModelError
        If the file is missing, truncated, not a model, or altered. Whether the weights fit the network is left to
        :func:`load_model`.
    """
    path = Path(path)
    description, expected = read_model_header(path)
    _, header = _read_header(path)
    content = path.read_bytes()
    weights = memoryview(content)[8 + int.from_bytes(content[:8], "little") :]
    total = hashlib.sha256()
    try:
        for name, entry in sorted(header.items()):
            if name == _METADATA:
                continue
            start, end = entry["data_offsets"]
            if end > len(weights):
                raise ValueError("its weights are cut off")
            total.update(name.encode())
            total.update(weights[start:end])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"model file '{path}' is damaged or not a safetensors file: {error}") from None
    if total.hexdigest() != expected:
        raise ModelError(_ALTERED.format(path))
    return description


def seal_model(path: str | Path) -> None:
    """Add the hash of its description to a model of version 0.1; the weights stay as they are, to the bit.

    Raises
    ------
    ModelError
        As :func:`load_model`.
    OutputError
        If the file cannot be written.
    """
    path = Path(path)
    _load(path)
    metadata, header = _read_header(path)
    sealed = {**metadata, _SEAL: _seal(metadata)}
    text = json.dumps({**header, _METADATA: sealed}, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the format wants the weights to begin at a multiple of it
    with path.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        weights = file.read()
    write_whole(path, lambda part: part.write_bytes(len(text).to_bytes(8, "little") + text + weights))


def _read_header(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the metadata of a safetensors file, and its whole header.

    Raises
    ------
    ModelError
        If it does not begin as such a file does.
    """
    try:
        with path.open("rb") as file:  # the length of the header, then the header as JSON
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length < min(path.stat().st_size, _LONGEST_HEADER):
                raise ValueError("its header is cut off")
            header = json.loads(file.read(length))
            return dict(header.get(_METADATA) or {}), dict(header)
    except RecursionError:
        raise ModelError(f"model file '{path}' is damaged: its header is nested too deeply") from None
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ModelError(f"model file '{path}' is damaged or not a safetensors file: {error}") from None


def shipped_models() -> dict[str, Path]:
    """Return the models that come with the package, by name.

    Examples
    --------
    >>> from regnet_itk import shipped_models
    >>> "regnet_multistage" in shipped_models()
    True
    """
    return {path.stem: path for path in sorted((Path(__file__).parent / "weights").glob("*.safetensors"))}


def find_model(name_or_path: str, beside: Path | None = None) -> Path:
    """Return the file of a shipped model's name, or of a path (also relative to the folder `beside`).

    Raises
    ------
    ModelError
        If there is neither, with the nearest name.
    """
    shipped = shipped_models()
    if name_or_path in shipped:
        return shipped[name_or_path]
    for candidate in (Path(name_or_path), (beside or Path()) / name_or_path):
        if (why := why_no_file(candidate)) is None:
            return candidate
        if why != MISSING:
            raise ModelError(f"model file '{candidate}' {why}")
    raise ModelError(
        f"no model '{name_or_path}': neither a file nor one of the shipped models {sorted(shipped)}"
        + did_you_mean(name_or_path, shipped)
    )


def _description(metadata: Mapping[str, str], path: Path) -> ModelDescription:
    if _SEAL in metadata and metadata[_SEAL] != _seal(metadata):
        raise ModelError(f"model file '{path}' was altered: its description does not match its hash")
    try:
        values = json.loads(metadata.get("description", ""))
        if not isinstance(values, dict):
            raise ParameterError("it is no table")
        return ModelDescription.from_dict(values)
    except RecursionError:
        raise ModelError(f"model file '{path}' has a description that is nested too deeply") from None
    except (ValueError, ParameterError) as error:
        raise ModelError(f"model file '{path}' has a description that this version cannot read: {error}") from None


def _seal(metadata: Mapping[str, str]) -> str:
    """Return the hash of a description and of the hash of the weights that it describes."""
    return digest_text([str(metadata.get(name, "")) for name in ("format", "sha256", "description")])


def _digest(tensors: dict[str, Tensor]) -> str:
    import torch

    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode())
        total.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
