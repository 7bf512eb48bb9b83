"""dilm: dataset distillation for text, after DiLM (Maekawa et al., Findings of NAACL 2024)."""

__version__ = "0.1.0"
