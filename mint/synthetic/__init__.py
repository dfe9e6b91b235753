"""Drawing code: patients, faces, radiographs and microscope tiles, made up by seed."""
