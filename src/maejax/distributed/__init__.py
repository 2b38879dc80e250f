"""Several processes as one run: how they meet, and who is gone."""
