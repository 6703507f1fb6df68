"""Both directions together: ways back that lead home cost nothing, on turned grids, judged by SimpleITK."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.spatial.transform import Rotation

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.refinement.consistency_term import ConsistencyTerm, inverse_residual

TURNED = Rotation.from_euler("zyx", [25, -15, 40], degrees=True).as_matrix()
SEEN = Grid((20, 22, 24), (1.5, 1.5, 1.5), (-40.0, 15.0, 130.0), TURNED)
COARSE = Grid((26, 26, 26), (2.0, 2.0, 2.0), tuple(SEEN.centre() - TURNED @ [25.0, 25.0, 25.0]), TURNED)
TURN = Rotation.from_rotvec([0.1, -0.06, 0.08]).as_matrix()


SHIFT = np.array([1.0, -2.0, 0.5])


def there(points):
    return SEEN.centre() + (points - SEEN.centre()) @ TURN.T + SHIFT


def back(points):
    return SEEN.centre() + (points - SEEN.centre() - SHIFT) @ TURN


def field_of(mapping, grid=COARSE):
    return DisplacementField((mapping(grid.points()) - grid.points()).astype(np.float32), grid)


def at_of(mapping):
    """As instance optimisation gives it: along the axes of the grid that is seen."""

    def at(index):
        points = SEEN.index_to_point(index.numpy()[:, ::-1])
        return torch.from_numpy(((mapping(points) - points) @ TURNED).astype(np.float32))

    return at


@pytest.fixture
def region():
    region = np.zeros(SEEN.shape, dtype=bool)
    region[5:-5, 5:-5, 5:-5] = True
    return region


def test_a_way_back_that_leads_home_costs_nothing(region):
    v = field_of(back)
    assert ConsistencyTerm(v, SEEN, region, 1.0).cost(at_of(there)) < 1e-5
    assert inverse_residual(field_of(there), v, SEEN, region) < 1e-3
    transforms = sitk.CompositeTransform(3)
    transforms.AddTransform(v.to_sitk_transform())
    transforms.AddTransform(field_of(there).to_sitk_transform())
    point = SEEN.centre() + np.array([2.0, -3.0, 1.0])
    np.testing.assert_allclose(transforms.TransformPoint(point), point, atol=1e-3)


def test_what_misses_costs_its_square(region):
    missing = field_of(lambda points: back(points) + np.array([0.3, 0.0, -0.4]))
    assert float(ConsistencyTerm(missing, SEEN, region, 2.0).cost(at_of(there))) == pytest.approx(0.5, rel=1e-3)
    assert inverse_residual(field_of(there), missing, SEEN, region) == pytest.approx(0.5, rel=1e-3)
