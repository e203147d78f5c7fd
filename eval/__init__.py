"""Programs that score models and compare their scores: mmeb, retrieval, report, leaderboard."""
