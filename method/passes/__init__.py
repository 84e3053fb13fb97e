"""Dense passes over calibration text: what they collect, and what is kept of one that was cut off."""
