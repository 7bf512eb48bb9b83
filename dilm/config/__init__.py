"""Every key: its type, unit, meaning and bounds, in one place."""
