"""A recipe each: builds model, data and optimizer from the configuration and calls the loop."""
