"""What a search has found, for people: figures."""
