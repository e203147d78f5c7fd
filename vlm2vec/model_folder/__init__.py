"""The files of a saved model: weights, adapter, settings; checked before they are used."""
