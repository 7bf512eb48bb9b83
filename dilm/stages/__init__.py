"""The paper's stages: each is a function of a typed config and earlier artifacts that makes one new artifact."""
