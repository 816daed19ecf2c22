"""The one place that imports timm, which stays optional."""

from types import ModuleType


def import_timm() -> ModuleType:
    """Return timm.

    Raises:
        ImportError: timm cannot be imported, with the reason: it is missing, or what it needs is. A torchvision built
            for another torch, for one, makes it fail with a RuntimeError.
    """
    try:
        import timm
    except Exception as error:
        raise ImportError(
            f"this needs timm, and importing it failed with {type(error).__name__}: {error}. Install timm with "
            "pip install 'cast-kernels[timm]', and a torchvision that fits the installed torch"
        ) from error
    return timm
