"""What asks a batch system, and what records its jobs; nothing else knows which system it is."""
