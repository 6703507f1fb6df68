"""A network's look at a pair: under the transform so far, and once more under what guides have made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from regnet_itk.stages.regnet_inputs import resample_pair
from regnet_itk.stages.regnet_several import weigh_fields
from regnet_itk.transforms.chain import TransformChain, link_field

if TYPE_CHECKING:
    from regnet_itk.data.field import DisplacementField
    from regnet_itk.data.image import Image
    from regnet_itk.networks.inference import Predictor
    from regnet_itk.networks.world import World
    from regnet_itk.stages.base import ImagePair


@dataclass(frozen=True, eq=False)
class NetworkLook:
    """What is needed to look at a pair.

    Parameters
    ----------
    seen : sequence of ImagePair
        Each fixed image with its moving one, in the unit of the network's world.
    images : sequence of (Image, Image)
        The same on the network's voxels, the moving ones through the transform so far.
    initial : TransformChain
        That transform.
    inside : Image
        Where the displacement is wanted, on the network's voxels.
    predictor : Predictor
    fade : float
        mm around that are wanted as well.
    world : World
    threads : int, optional
        All by default.
    """

    seen: Sequence[ImagePair]
    images: Sequence[tuple[Image, Image]]
    initial: TransformChain
    inside: Image
    predictor: Predictor
    fade: float
    world: World
    threads: int | None

    def predict(self) -> DisplacementField:
        """Return the displacement that the network predicts."""
        return self._predicted(self.images)

    def predict_back(self) -> DisplacementField:
        """Return the displacement of the way back: from the moving images through the transform so far to the fixed."""
        return self._predicted([(moving, fixed) for fixed, moving in self.images])

    def again(self, u: DisplacementField) -> DisplacementField:
        """Return the whole displacement, if the network looks at the pair under the displacement `u`."""
        through = self.initial.then(link_field(u)).to_sitk(self.seen[0].fixed.grid)
        background, grid = self.world.background, self.inside.grid
        rest = self._predicted([resample_pair(o, grid, through, background, threads=self.threads) for o in self.seen])
        return TransformChain((link_field(u), link_field(rest))).displacement_on(rest.grid)

    def _predicted(self, images: Sequence[tuple[Image, Image]]) -> DisplacementField:
        fields = [self.predictor.predict(*pair, self.inside, margin=self.fade) for pair in images]
        return weigh_fields(fields, images, self.world.intensity_range)
