"""RegNet as a registration stage beside elastix.

T(x) = x + u(x) maps points of the fixed image to the moving image, in mm, LPS; the warped image is I_M(T(x)).
The names that users need are listed in ``__init__.pyi``, for people, type checkers and Python alike. Each is imported
when it is first used, so that ``import regnet_itk`` stays fast.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
