"""Which texts: coresets, and what teaches."""
