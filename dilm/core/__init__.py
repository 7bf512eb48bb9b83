"""Words that everything uses: errors, files, keys, signals. No torch."""
