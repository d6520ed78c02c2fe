"""Trained bundles that ship with the package."""

from pathlib import Path


def bundle_path(name: str) -> Path:
    """The directory of the bundle called `name`, or `name` itself when it is a directory."""
    shipped = Path(__file__).parent / name
    return shipped if shipped.is_dir() else Path(name)
