"""The base of all other packages: protocol, distribution, calibration, tracking, errors."""
