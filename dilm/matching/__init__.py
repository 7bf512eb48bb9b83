"""Gradient matching, as the paper has it (section 3)."""
