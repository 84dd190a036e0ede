"""Several trainings, one after the other: the file, its checks, the run and its account."""
