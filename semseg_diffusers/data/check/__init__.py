"""What is wrong with a source or a prepared data set, all findings at once."""
