"""Model families: one package per family, which holds everything in which families differ."""
