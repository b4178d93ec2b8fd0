"""What the tuner may try, a module an operator: SUBJECTS, by name."""
