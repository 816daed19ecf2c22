"""The compiled extension ``cast_kernels._C``, loaded at the first call that needs it."""

import functools
from types import ModuleType

_HOW_TO_BUILD = (
    "the C++ extension cast_kernels._C is not built. In a source tree run `pip install -e .`; "
    "if cast-kernels is installed, leave the source folder, which hides the installed package"
)


class ExtensionError(ImportError):
    """The extension is missing, or does not load on this machine."""


@functools.cache
def load() -> ModuleType:
    """Return ``cast_kernels._C``.

    Raises:
        ExtensionError: It was never built, or its binary does not load here; the message says which and what to do.
    """
    try:
        from cast_kernels import _C
    except ModuleNotFoundError as error:
        raise ExtensionError(_HOW_TO_BUILD) from error
    except ImportError as error:
        if "circular" in str(error) or "cannot import name" in str(error):
            raise ExtensionError(_HOW_TO_BUILD) from error
        raise ExtensionError(
            f"the C++ extension cast_kernels._C does not load on this machine ({error}); "
            "rebuild it here with `pip install --force-reinstall --no-deps .`"
        ) from error
    return _C
