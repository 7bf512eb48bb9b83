"""What `tools/bench.py` measures, a file a subject."""
