"""Text for people: tables on a terminal, counted nouns, names from other programs."""
