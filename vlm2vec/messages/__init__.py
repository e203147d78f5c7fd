"""Text for users: tables on a terminal, counted nouns, advice on flags of other programs."""
