"""Steps of the generator: engines, checkpoints, language modelling."""
