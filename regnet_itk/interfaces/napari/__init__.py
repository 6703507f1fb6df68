"""A plugin for napari (``pip install 'regnet-itk[napari]'``): registration, its results and its files as layers.

``napari.yaml`` lists what it adds to napari. The world of napari is (z, y, x) in mm here, of LPS points (x, y, z); see
:mod:`regnet_itk.interfaces.napari.geometry`. Only this part of the package imports napari, and of it only
`background`, `choices` and the widgets need Qt.
"""
