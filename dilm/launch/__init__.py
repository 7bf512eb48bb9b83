"""From combinations of keys to jobs. No torch."""
