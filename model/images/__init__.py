"""Convert between image files and uint8 arrays. Training, calibration and scoring share this code."""
