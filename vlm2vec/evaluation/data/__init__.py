"""What an evaluation scores: which datasets, their rows, their items, and what is to be known of them beforehand."""
