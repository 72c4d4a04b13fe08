"""Sources of images: `sources.open_source` takes the name of a data set or a folder and answers with a `Source`."""
