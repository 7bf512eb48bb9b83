"""The stages: each is a function of a configuration and earlier artifacts that makes one new artifact."""
