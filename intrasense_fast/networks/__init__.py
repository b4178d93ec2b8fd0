"""The networks that train, predict and evaluate."""
