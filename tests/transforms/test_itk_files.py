"""Chains as ITK's files and transforms: what is written and read again, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from chain_cases import CHAINS, POINTS, bspline

from regnet_itk.errors import TransformError
from regnet_itk.transforms.elastix_reading import read_chain
from regnet_itk.transforms.itk_files import chain_from_sitk, write_itk


@pytest.mark.parametrize("name", CHAINS)
def test_the_itk_transform_is_exact_and_survives_its_file(tmp_path, name):
    chain = CHAINS[name]
    expected = chain.map_points(POINTS)
    composite = chain.to_sitk()
    np.testing.assert_allclose([composite.TransformPoint(p) for p in POINTS.tolist()], expected, atol=1e-5)
    for suffix in ("h5", "tfm"):
        write_itk(chain, tmp_path / f"t.{suffix}")
        np.testing.assert_allclose(read_chain(tmp_path / f"t.{suffix}").map_points(POINTS), expected, atol=1e-5)


def test_itk_transforms_of_all_kinds_are_read(tmp_path):
    import SimpleITK as sitk

    euler = sitk.Euler3DTransform((1, 2, 3), 0.1, 0.2, 0.3, (4, 5, 6))
    nested = sitk.CompositeTransform([sitk.TranslationTransform(3, (1, 2, 3)), sitk.CompositeTransform([euler])])
    for transform in (sitk.Transform(3, sitk.sitkIdentity), euler, nested, bspline(2).to_sitk_transform()):
        expected = [transform.TransformPoint(p) for p in POINTS.tolist()]
        np.testing.assert_allclose(chain_from_sitk(transform).map_points(POINTS), expected, atol=1e-9)
        if transform is not nested:  # ITK cannot write one composite in another
            sitk.WriteTransform(transform, str(tmp_path / "t.tfm"))
            np.testing.assert_allclose(read_chain(tmp_path / "t.tfm").map_points(POINTS), expected, atol=1e-9)


def test_itk_transforms_that_cannot_be_read_are_named(tmp_path):
    import SimpleITK as sitk

    sitk.WriteTransform(sitk.AffineTransform(2), str(tmp_path / "flat.tfm"))
    with pytest.raises(TransformError, match="is 2D"):
        read_chain(tmp_path / "flat.tfm")
    (tmp_path / "broken.h5").write_bytes(b"no")
    with pytest.raises(TransformError, match=r"broken\.h5' cannot be read"):
        read_chain(tmp_path / "broken.h5")
    order = sitk.BSplineTransform(3, 0)
    with pytest.raises(TransformError, match="order 0"):
        chain_from_sitk(order)


def test_a_damaged_hdf5_file_is_told_in_one_line(tmp_path, capfd):
    write_itk(CHAINS["affine, field"], tmp_path / "whole.h5")
    content = (tmp_path / "whole.h5").read_bytes()
    for name, part, message in (
        ("cut", content[: len(content) // 2], rf"is cut off \({len(content) // 2} of {len(content)} bytes"),
        ("short", content[:30], "is cut off"),
        ("other", b"hello", "is no HDF5 file"),
    ):
        (tmp_path / f"{name}.h5").write_bytes(part)
        with pytest.raises(TransformError, match=rf"{name}.h5' cannot be read: it {message}"):
            read_chain(tmp_path / f"{name}.h5")
    assert capfd.readouterr() == ("", "")
