"""Retrieval from a corpus: graded relevance, exact search, metrics."""
