"""What a data set is worth."""
