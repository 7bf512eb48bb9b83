"""What stands under `root`: folders by content, shards, rows, locks."""
