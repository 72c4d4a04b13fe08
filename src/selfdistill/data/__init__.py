"""Sources of images: `open_source` takes the name of a data set or a folder and answers with a `Source`."""

from selfdistill.data.folder import Policy, open_folder
from selfdistill.data.images import Files, Images, Pixels, Source
from selfdistill.data.reading import BadImage, inspect, printable, read_image
from selfdistill.data.sources import SOURCES, data_root, open_source

__all__ = [
    "SOURCES",
    "BadImage",
    "Files",
    "Images",
    "Pixels",
    "Policy",
    "Source",
    "data_root",
    "inspect",
    "open_folder",
    "open_source",
    "printable",
    "read_image",
]
