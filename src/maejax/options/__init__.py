"""Every flag of a training run, in groups; the docstrings are the help text of `maejax train --help`."""
