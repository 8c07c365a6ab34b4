"""Pages to be read and answered: the report of a run, the reader study and its score."""
