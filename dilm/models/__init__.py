"""Generator, learner and LLM: what they compute."""
