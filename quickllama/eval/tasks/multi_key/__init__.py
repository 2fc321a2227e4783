"""One number among many that look alike."""
