"""Several processes as one run: their rendezvous, agreement and end."""
