"""Programs that prepare training data: convert, verify, inspect, download, mine, and the miniature benchmark."""
