"""What is wrong with a source or a prepared dataset, all findings at once."""
