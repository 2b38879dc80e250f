"""HTML pages that need nothing from elsewhere: a run, runs compared, an evaluation, a plan."""
