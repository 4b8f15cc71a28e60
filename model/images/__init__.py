"""Files and folders of images <-> uint8 arrays. Training, calibration and scoring share this one code path."""
